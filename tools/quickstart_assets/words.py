"""The words of the toy world. Each list is a pool that a sentence draws one word from."""


def _pool(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Name -> (subject pronoun, possessive).
NAMES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        _pool("Anna Clara Emma Grace Iris Kate Mia Olga Rosa Tina Wendy Nora Lucy Jane Ella Ruth"), ("she", "her")
    ),
    **dict.fromkeys(
        _pool("Ben David Felix Henry Jack Leo Noah Paul Sam Victor Oscar Max Karl Hugo Tom Peter"), ("he", "his")
    ),
}
PEOPLE = tuple(NAMES)

# Things that one can carry and put away.
ITEMS = _pool(
    "trophy violin helmet lamp pillow teapot globe vase guitar kite drum basket blanket statue clock mirror camera "
    "radio kettle doll"
)
CONTAINERS = _pool("suitcase box bag drawer cupboard locker crate chest trunk cabinet")
OPENINGS = _pool("door window gate tunnel hatch doorway hallway gap")
FURNITURE = _pool("sofa piano wardrobe desk bookcase fridge ladder mattress table bed")
FAST_VEHICLES = _pool("car train taxi van tram motorbike")
SLOW_VEHICLES = _pool("tractor bus wagon cart truck scooter")
VEHICLES = FAST_VEHICLES + SLOW_VEHICLES
GROWNUPS = _pool("doctor nurse teacher uncle aunt neighbor gardener baker farmer driver")
CHILDREN = _pool("child boy girl baby pupil patient guest visitor nephew niece")
PREDATORS = _pool("cat fox wolf owl hawk dog lion eagle")
PREY = _pool("mouse rabbit squirrel hare duck frog lizard goose")
ROPES = _pool("rope crane chain wire hook cable")
LOADS = _pool("piano statue crate barrel log anchor stone boat")
COVERS = _pool("blanket sheet cloth carpet towel curtain")
SURFACES = _pool("bed table sofa floor bench window desk")
BLADES = _pool("knife saw axe razor blade")
HARD_THINGS = _pool("bread cheese log pumpkin branch melon rope board")
BALLS = _pool("ball stone brick hammer bottle rock")
BREAKABLES = _pool("table window roof fence box wall bench shelf")
BUILDINGS = _pool("house church school tower shop mill castle barn")
BLOCKERS = _pool("tree hill wall hedge fence cliff bridge")
BRIDGES = _pool("bridge ice pier road ramp plank")
BOATS = _pool("boat ship raft canoe ferry")
FAR_PLACES = _pool("island harbor shore lighthouse beach bay")
PLANTS = _pool("rose tulip tomato lily fern cactus bean herb")
POTS = _pool("pot vase bucket jar bowl basket")
LAMPS = _pool("lamp candle torch lantern bulb")
ROOMS = _pool("kitchen cellar hall garage attic barn library church")

PLACES = _pool("park market school library garden kitchen station beach forest bakery museum river")
FOODS = _pool("soup bread cake rice cheese salad pie pasta")
DRINKS = _pool("tea milk water coffee juice cocoa")
FRUITS = _pool("apples pears plums lemons cherries peaches oranges grapes")
THINGS = _pool("book ball key hat cup coat pencil letter coin ring")
COLORS = _pool("red blue green yellow white black brown grey")
WEATHER = _pool("sunny rainy windy cloudy snowy foggy")
NUMBERS = _pool("two three four five six seven eight nine ten")
FEELINGS = _pool("happy tired proud calm sad glad")
JOBS = _pool("baker farmer teacher doctor painter sailor gardener singer")
SKILLS = _pool("swim dance sing paint cook read draw sew")
DAYS = _pool("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
GAMES = _pool("chess cards tennis football hockey")

# Animal -> (kind, where it lives, what it eats).
ANIMALS: dict[str, tuple[str, str, str]] = {
    "jay": ("bird", "forest", "acorns"),
    "owl": ("bird", "forest", "mice"),
    "duck": ("bird", "pond", "weeds"),
    "hawk": ("bird", "hills", "mice"),
    "robin": ("bird", "garden", "worms"),
    "goose": ("bird", "meadow", "grass"),
    "trout": ("fish", "river", "flies"),
    "carp": ("fish", "pond", "weeds"),
    "salmon": ("fish", "sea", "shrimps"),
    "cow": ("mammal", "meadow", "grass"),
    "horse": ("mammal", "meadow", "hay"),
    "hare": ("mammal", "meadow", "grass"),
    "fox": ("mammal", "forest", "mice"),
    "squirrel": ("mammal", "forest", "nuts"),
    "bear": ("mammal", "hills", "berries"),
    "bee": ("insect", "garden", "nectar"),
    "ant": ("insect", "forest", "seeds"),
    "beetle": ("insect", "garden", "leaves"),
}
ALL_WORDS = tuple(sorted({word for pool in list(vars().values()) if isinstance(pool, tuple) for word in pool}))

KIND_FACTS = {
    "bird": "Birds have wings and lay eggs.",
    "fish": "Fish can swim and breathe in water.",
    "mammal": "Mammals drink milk when they are young.",
    "insect": "Insects have six legs.",
}
