"""Text to ids in bulk: in portions."""

from data.toy_tokenizers import byte_level

from qdpo.data.encoder import PORTION, make_encoder


def test_the_tokenizer_gets_long_texts_in_portions():
    tokenizer, sizes = byte_level(), []

    def counting(texts: list[str], **options):
        sizes.append(sum(map(len, texts)))
        return tokenizer(texts, **options)

    long = "one two three four, " * 5_000
    texts = [f"{n} {long}" for n in range(8)]
    ids = make_encoder(counting)(["", *texts, ""])
    assert ids == tokenizer(["", *texts, ""], add_special_tokens=False)["input_ids"]
    assert len(sizes) > 2
    assert max(sizes) < PORTION + len(long) + 2
    assert make_encoder(counting)([]) == []
