"""Mojibake is read back in every language, once and twice wrong; right text with the same letters stays."""

import pytest

from qdpo.data.quality.mojibake import mended

TEXTS = {
    "French": "L’été dernier, l’école a fêté ses vingt ans : « c’était très bien ». Où ? À l’ÉCOLE, 5 €.",
    "German": "Größe und Übung: die Straße heißt „Königsallee“ – schön, oder? ÄRGER ÜBER ÖL",
    "Spanish": "¿Dónde está el niño? ¡Mañana será otro día! ESPAÑA Y ÁFRICA",
    "Portuguese": "A ação não é fácil, irmão. À tarde há pão. AÇÃO E CORAÇÃO",
    "Polish": "Zażółć gęślą jaźń. Była łódź w środku, świat żyje. Łódź, Śląsk, Źródło, Ćma",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy. Škoda, čas, Říp.",
    "Turkish": "Günaydın, İstanbul’da hava çok güzel. Şişli, ağaç, ılık.",
    "Vietnamese": "Tiếng Việt rất đẹp, tôi đang học ở Hà Nội.",
    "Russian": "Привет, как дела? Я — студент. Ёжик!",
    "Greek": "Καλημέρα, τι κάνεις;",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "Arabic": "مرحبا بالعالم، كيف حالك؟",
    "Chinese": "你好，世界。今天天气很好！",
    "Japanese": "日本語のテキストです。「こんにちは」と言った。",
    "Korean": "안녕하세요, 저는 학생입니다.",
    "English": "Don’t “quote” me — it’s £3, 20 °C, ½ cup… © 2020, a café ✓ → 😀👍🏽 • naïve",
}


def windows(data: bytes) -> str:
    """As a browser reads Windows-1252: five bytes that it does not have stand for themselves."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data)


def latin(data: bytes) -> str:
    return data.decode("latin-1")


@pytest.mark.parametrize("language", TEXTS)
def test_wrong_text_is_read_back_and_right_text_stays(language: str):
    text = TEXTS[language]
    assert mended(text) == text
    for wrongly in (windows, latin):
        once = wrongly(text.encode())
        assert once != text
        assert mended(once) == text
        assert mended(wrongly(once.encode())) == text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("«déjà», he said, donâ€™t", "«déjà», he said, don’t"),
        ("un café et un cafÃ©", "un café et un café"),
        ("5Â\xa0km at 20Â°C for Â£3", "5\xa0km at 20°C for £3"),
        ("CAFÃ‰ “NÃO”", "CAFÉ “NÃO”"),
        ("l’OPCIÃ“N", "l’OPCIÓN"),
        ("“gáº·p”", "“gặp”"),
        ("ï»¿first", "\ufefffirst"),
    ],
)
def test_wrong_parts_of_right_text_are_read_back(wrong: str, right: str):
    assert mended(wrong) == right


@pytest.mark.parametrize(
    "text",
    [
        *(
            "«Il est allé…»",
            "«\xa0Il est allé\xa0»",
            "il l’a prédit”…",
            "voilà…»",
            "déjà’”",
            "«‹allé›»",
            "naïve—“très”…",
        ),
        *(
            "“IRMÃ”",
            "IRMÃ… e MAÇÃ”",
            "a irmã disse “NÃO” e “AMANHÃ”",
            "la lettre «Â» et l’«É»",
            "SÃO PAULO, MÃE, ÂNGULO",
        ),
        *("CAFÉ’S RÉSUMÉ… “CAFÉ” CAFÉ™ CAFÉ®", "COMITÉ™", "PAPÁ’S, MAMÁ…, SOFÁ», «SOFÁ»", "¿QUÉ? ¡OLÉ!", "VOILÀ\xa0»"),
        *(
            "2\xa0×\xa03 cm, 2 ×“a”, 2×²",
            "Ø\xa05 mm, πØ²h, Ø°",
            "the letter É—an accented E—is",
            "Ö–Ä–Ü",
            "ÅÄÖ…",
        ),
        *("PROHLÍŽEČ", "DRÁŽÍŠ ÍŠÍŽ Ášův"),
        *(
            "Spaß… groß” weiß»",
            "ĂN VÀ “UỐNG”… TÂ” VÂ»",
            "TÜRKÇE’DE İSTANBUL’DA",
            "PROHLÍŽEČ DRÁŽÍŠ ÍŠÍŽ Ášův",
            "N’É° 5",
            "Ã",
            "Â",
            "â€",
            "x = Ø°",
        ),
    ],
)
def test_letters_before_signs_are_no_proof(text: str):
    assert mended(text) == text
