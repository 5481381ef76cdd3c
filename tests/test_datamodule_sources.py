"""Sources as a data module is given them in Python: specs, or mappings with the same keys."""

from types import SimpleNamespace

import pytest
from test_datamodule import MODEL
from tiny_data import Talks, Texts

from bluelm_lightning.datamodules import (
    PreferenceDataModule,
    PretrainDataModule,
    PromptDataModule,
    SFTDataModule,
    SourceSpec,
)
from bluelm_lightning.errors import ConfigError

pytest_plugins = ["callback_runs"]


@pytest.mark.parametrize("kind", [SFTDataModule, PretrainDataModule, PromptDataModule, PreferenceDataModule])
def test_sources_may_be_mappings(tokenizer_folder, kind):
    talks = {"source": Talks(4), "name": "talks", "max_repeats": 2}
    data = kind(tokenizer_folder, [talks], val_sources=[{"source": Texts(3)}, SourceSpec(source=Talks(2))])
    data.prepare(MODEL if kind is not PromptDataModule else SimpleNamespace(**vars(MODEL), write=None))
    assert [(source.name, len(source)) for source in data.opened] == [("talks", 4)]
    assert [(source.name, len(source)) for source in data.val_opened] == [("Texts", 3), ("Talks", 2)]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([{"path": "a"}, {"pth": "b"}], r"sources\[1\]\.pth: unknown key of SourceSpec; did you mean path\?"),
        ([{"path": "a", "q": 1}], r"sources\[0\]\.q: unknown key of SourceSpec; known are path, source, name, "),
        (["shards/a"], r"sources\[0\]: 'shards/a' is no source; give a SourceSpec or a mapping such as "),
    ],
)
def test_mappings_that_are_no_sources_are_refused(tokenizer_folder, sources, said):
    with pytest.raises(ConfigError, match=rf"^data\.{said}"):
        SFTDataModule(tokenizer_folder, sources)
    with pytest.raises(ConfigError, match=rf"^data\.val_{said}"):
        SFTDataModule(tokenizer_folder, [{"path": "a"}], val_sources=sources)
