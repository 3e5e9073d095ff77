"""First stage: read, check and tokenise the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdpo import console
from qdpo.files import write_json
from qdpo.run.folder import DATA_REPORT
from qdpo.run.schema import Data, Split, Tokenizer
from qdpo.training import parallel
from qdpo.training.stages.state import RunState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared


def prepare_data(run: RunState) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """Read, check and tokenise the data, before the base is loaded."""
    from qdpo.data.cache import tokenizer_digest
    from qdpo.data.files.hub import commit_of
    from qdpo.data.prepare import fingerprint, prepare
    from qdpo.model.load import load_tokenizer
    from qdpo.paths import cache_folder

    config = run.config
    tokenizer = load_tokenizer(config.model)
    revision = commit_of(config.data.name, config.data.revision)
    with parallel.first_goes_first():
        data = prepare(config.data, tokenizer, config.train.seed, cache=cache_folder("data"))
    if data.template.source is not None:
        # what is saved beside the adapter, and exported, asks as the run has trained
        tokenizer.chat_template = data.template.source
    for report in (data.train_report, data.heldout_report):
        for line in report.summary(remarks=False):
            console.say(line)
        for remark in report.remarks():
            tell = console.warn if remark in report.warnings() else console.note
            tell(remark)
    run.save(
        tokenizer=Tokenizer(
            sha256=tokenizer_digest(tokenizer),
            template_sha256=data.template.sha256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        data=Data(
            train=Split(
                name=config.data.name,
                revision=revision,
                split=config.data.split,
                fingerprint=fingerprint(data.train),
                pairs=len(data.train),
            ),
            heldout=Split(
                name=config.data.eval_name or config.data.name,
                split=config.data.eval_split,
                fingerprint=fingerprint(data.heldout),
                pairs=len(data.heldout),
            ),
        ),
    )
    write_json(
        run.folder / DATA_REPORT,
        {"train": data.train_report.as_dict(), "heldout": data.heldout_report.as_dict()},
    )
    return tokenizer, data
