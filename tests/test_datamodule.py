"""The data module: what it refuses to resume, what it hands out, and what others may ask of it."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny import PER_TILE, TILE, VOCAB, question, tiny_tokenizer
from tiny_data import Talks, Texts, documents, flat

from bluelm_lightning.callbacks import SharePoint, ShareSchedule
from bluelm_lightning.data.shard_writer import ShardWriter
from bluelm_lightning.data.tokenizer import train_tokenizer
from bluelm_lightning.datamodules import MultimodalDataModule, PretrainDataModule, SFTDataModule, SourceSpec
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import ImageSpec, Sample

MODEL = SimpleNamespace(image_spec=ImageSpec(TILE, PER_TILE), vocab_size=VOCAB)


# ---------------------------------------------------------------- builders
@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def module(tokenizer):
    """Builds and prepares a data module of two plain sources; ``spec`` changes the first source's settings."""

    def build(
        spec: dict | None = None, kind: type[MultimodalDataModule] = SFTDataModule, **options
    ) -> MultimodalDataModule:
        first = {"source": Talks(40), "weight": 2.0, **(spec or {})}
        sources = options.pop("sources", [SourceSpec(**first), SourceSpec(source=Texts(25), weight=1.0)])
        data = kind(**{"tokenizer": tokenizer, "sources": sources, "row_tokens": 96, "num_workers": 0, **options})
        data.prepare(MODEL)
        return data

    return build


def take(loader, num: int) -> list:
    return [batch for batch, _ in zip(loader, range(num))]


# ---------------------------------------------------------------- what it refuses to resume
class Stamped(Talks):
    def __init__(self, fingerprint: str) -> None:
        super().__init__(40)
        self.fingerprint = fingerprint


CHANGED = {
    "fewer samples": ({"spec": {"source": Talks(39)}}, "sources"),
    "another name": ({"spec": {"name": "chats"}}, "sources"),
    "another weight": ({"spec": {"weight": 3.0}}, "sources"),
    "epochs": ({"spec": {"epochs": 2}}, "sources"),
    "traces": ({"spec": {"thinking_share": 0.5}}, "sources"),
    "other contents": ({"spec": {"source": Stamped("b")}}, "sources"),
    "a source less": ({"sources": [SourceSpec(source=Talks(40), weight=2.0)]}, "sources"),
    "longer rows": ({"row_tokens": 128}, "row_tokens"),
    "more rows": ({"batch_rows": 2}, "batch_rows"),
    "a bound on tiles": ({"max_tiles": 9}, "max_tiles"),
    "overlong": ({"overlong": "split"}, "overlong"),
    "max_grid": ({"max_grid": 2}, "max_grid"),
    "thumbnail": ({"thumbnail": True}, "thumbnail"),
    "seed": ({"seed": 1}, "seed"),
}


@pytest.mark.parametrize(("change", "key"), CHANGED.values(), ids=CHANGED)
def test_another_run_is_not_resumed(change, key, module):
    before = module({"source": Stamped("a")} if change.get("spec", {}).get("source") else None)
    before.train_dataloader()
    after = module(**change)
    message = rf"^data\.{key}: this run had .+ when it was saved and now has .+: .+ start a new run with --init_from"
    with pytest.raises(ConfigError, match=message):
        after.load_state_dict(before.state_dict())


def test_another_tokenizer_is_not_resumed(module, tmp_path):
    before = module()
    before.train_dataloader()
    train_tokenizer(["another text, other tokens"] * 9, 290, tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.tokenizer: this run had \w+ when it was saved and now has \w+"):
        module(tokenizer=str(tmp_path)).load_state_dict(before.state_dict())


def test_another_number_of_processes_is_not_resumed(module):
    before = module()
    before.train_dataloader()
    state = before.state_dict()
    state["ranks"] *= 2
    with pytest.raises(
        ConfigError, match=r"^trainer\.devices: saved with 2 processes, resumed with 1: .* use the same"
    ):
        module().load_state_dict(state)


def test_shards_that_changed_are_not_resumed(module, tmp_path):
    def shards(answer: str) -> SourceSpec:
        folder = tmp_path / answer
        with ShardWriter(folder) as writer:
            for number in range(9):
                writer.write(question(answer=answer, id=str(number)))
        return SourceSpec(path=str(folder), name="shards")

    before = module(sources=[shards("yes")])
    assert take(before.train_dataloader(), 1)[0].sources[0] == "shards"
    module(sources=[SourceSpec(path=str(tmp_path / "yes"), name="shards")]).load_state_dict(before.state_dict())
    with pytest.raises(ConfigError, match=r"^data\.sources: "):
        module(sources=[shards("no")]).load_state_dict(before.state_dict())


def test_workers_may_change_and_a_checkpoint_without_a_state_is_a_start(module):
    before = module()
    wanted = [flat(batch) for batch in take(before.train_dataloader(), 4)]
    state = torch.load(_saved(before.state_dict()), weights_only=True)
    after = module(num_workers=1)
    after.load_state_dict(state)
    assert [flat(batch) for batch in take(after.train_dataloader(), 4)] == wanted  # none was marked: from the start
    after.load_state_dict({})
    assert module().state_dict() == {}, "no loader, no state"


def _saved(state: dict):
    from io import BytesIO

    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_only_batches_that_train_are_marked(module):
    data = module()
    batch = take(data.train_dataloader(), 2)[1]
    for training, cursor in ((False, -1), (True, 1)):
        data.trainer = SimpleNamespace(training=training, world_size=1, global_rank=0)
        assert data.on_after_batch_transfer(batch, 0) is batch
        assert data.state_dict()["ranks"][0]["cursor"] == cursor


# ---------------------------------------------------------------- what comes out
def test_samples_carry_the_name_of_their_source_in_the_settings(module):
    data = module({"name": "chats"})
    batches = take(data.train_dataloader(), 60)
    count = Counter(name for batch in batches for name in batch.sources)
    assert set(count) == {"chats", "Texts"}
    assert 1.8 < count["chats"] / count["Texts"] < 2.2  # weights 2 : 1
    assert SourceSpec(path="runs/data/easy_vqa/").label == "easy_vqa"


def test_by_default_samples_weigh_the_same(module):
    data = module(sources=[SourceSpec(source=Talks(40)), SourceSpec(source=Texts(10))], row_tokens=256)
    count = Counter(name for batch in take(data.train_dataloader(), 10) for name in batch.sources)
    assert 3 < count["Talks"] / count["Texts"] < 5


def test_validation_reads_everything_once_and_in_order(module):
    broken = Talks(12, broken=(3,), long=(5,))
    data = module(val_sources=[SourceSpec(source=broken, name="val"), SourceSpec(source=Texts(4))], overlong="error")
    loader = data.val_dataloader()
    first, second = list(loader), list(loader)
    assert set(documents(first)) == {f"talks-{n}" for n in range(12) if n not in (3, 5)} | {
        f"texts-{n}" for n in range(4)
    }
    assert [flat(batch) for batch in first] == [flat(batch) for batch in second]
    assert loader.skipped == {"val": 2}
    assert module().val_dataloader() == []


def test_pretraining_splits_long_texts_and_fine_tuning_reports_them(module):
    texts = {"sources": [SourceSpec(source=Texts(5, long=(2,)), epochs=1)]}
    split = documents(list(module(kind=PretrainDataModule, **texts).train_dataloader()))
    assert sorted(name for name in split if "#" in name) == [f"texts-2#{n}" for n in range(4)]
    skipping = module(kind=SFTDataModule, **texts).train_dataloader()
    assert "texts-2" not in {name.split("#")[0] for name in documents(list(skipping))}
    assert skipping.skipped == {"Texts": 1}


def test_traces_are_left_out_in_their_share(module):
    data = module({"thinking_share": 0.0})
    think = data.tokenizer.convert_tokens_to_ids("<think>")
    assert not any((batch.ids == think).any() for batch in take(data.train_dataloader(), 10))
    assert any((batch.ids == think).any() for batch in take(module().train_dataloader(), 10))


# ---------------------------------------------------------------- what others ask
def test_prompts_come_from_the_validation_sources_in_turn(module):
    val = [
        SourceSpec(source=Talks(9, broken=(1,)), name="a"),
        SourceSpec(source=Texts(9)),
        SourceSpec(source=Talks(9), name="b"),
    ]
    data = module(val_sources=val)
    for thinking in (True, False):
        pairs = data.sample_prompts(4, thinking)
        assert [(sample.source, sample.id) for sample, _ in pairs] == [
            ("a", "talks-0"), ("b", "talks-0"), ("b", "talks-1"), ("a", "talks-2")
        ]  # fmt: skip
        for sample, prompt in pairs:
            assert torch.equal(prompt.ids, data.encoder.prompt(sample, thinking).ids)
    assert [sample.source for sample, _ in module().sample_prompts(2, True)] == ["Talks", "Talks"]
    assert len(data.sample_prompts(99, True)) == 17


def test_preview_and_manifest(module):
    data = module({"name": "chats"}, val_sources=[SourceSpec(source=Stamped("f"), name="val")])
    batch = take(data.train_dataloader(), 1)[0]
    assert data.preview(batch, color=False).startswith(f"[{batch.sources[0]} {batch.sample_ids[0]}, ")
    assert "\x1b[32m" in data.preview(batch)
    assert data.manifest() == {
        "chats": {"path": None, "samples": 40, "fingerprint": ""},
        "Texts": {"path": None, "samples": 25, "fingerprint": ""},
        "val": {"path": None, "samples": 40, "fingerprint": "f"},
    }


# ---------------------------------------------------------------- settings
def test_the_vocabulary_must_cover_the_tokenizer(tokenizer):
    data = SFTDataModule(tokenizer=tokenizer, sources=[SourceSpec(source=Talks())])
    tokens = len(tiny_tokenizer())
    message = (
        rf"^model\.vlm\.decoder\.vocab_size: the tokenizer has {tokens} tokens but .* {tokens - 1}; set vocab_size: 320"
    )
    with pytest.raises(ConfigError, match=message):
        data.prepare(SimpleNamespace(image_spec=ImageSpec(TILE, PER_TILE), vocab_size=tokens - 1))


NOWHERE = {"tokenizer": "x", "sources": []}
BAD = {
    "neither path nor source": (lambda: SourceSpec(), "data.sources: give either path or source"),
    "both": (lambda: SourceSpec(path="a", source=Talks()), "data.sources: give either path or source"),
    "weight": (lambda: SourceSpec(path="a", weight=0), "data.sources.weight: weight is 0; give a positive number"),
    "nan": (lambda: SourceSpec(path="a", weight=float("nan")), "data.sources.weight: weight is nan"),
    "epochs": (lambda: SourceSpec(path="a", epochs=-1), "data.sources.epochs: epochs is -1; give a positive number"),
    "share": (
        lambda: SourceSpec(path="a", thinking_share=1.5),
        "data.sources.thinking_share: 1.5 is not between 0 and 1",
    ),
    "row_tokens": (lambda: SFTDataModule(**NOWHERE, row_tokens=0), "data.row_tokens: 0 is below 1"),
    "batch_rows": (lambda: SFTDataModule(**NOWHERE, batch_rows=-4), "data.batch_rows: -4 is below 1"),
    "max_tiles": (lambda: SFTDataModule(**NOWHERE, max_tiles=0), "data.max_tiles: 0 is below 1"),
    "num_workers": (lambda: SFTDataModule(**NOWHERE, num_workers=-1), "data.num_workers: -1 is below 0"),
    "overlong": (
        lambda: PretrainDataModule(**NOWHERE, overlong="cut"),
        "data.overlong: 'cut' is not one of skip, split",
    ),
}


@pytest.mark.parametrize(("build", "message"), BAD.values(), ids=BAD)
def test_wrong_settings_are_refused_before_anything_is_read(build, message):
    with pytest.raises(ConfigError) as error:
        build()
    assert str(error.value).startswith(message)


def test_weights_go_to_every_source_or_to_none(module):
    data = module(sources=[SourceSpec(source=Talks(), weight=1), SourceSpec(source=Texts())])
    with pytest.raises(ConfigError, match=r"^data\.sources\.weight: give a weight to every source or to none"):
        data.train_dataloader()


def test_a_source_of_ones_own_needs_two_methods(module):
    class Own:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Sample(id=str(index), source="whatever", text="a red circle")

    batch = take(module(sources=[SourceSpec(source=Own())]).train_dataloader(), 1)[0]
    assert set(batch.sources) == {"Own"}


def test_processes_that_share_rows_read_the_same_samples(module):
    data = module()
    data.trainer = SimpleNamespace(
        global_rank=3, world_size=4, training=True, strategy=SimpleNamespace(context_parallel=2)
    )
    loader = data.train_dataloader()
    assert (loader.rank, loader.world_size) == (1, 2)


def test_two_sources_of_one_name_have_no_shares_and_both_stand_in_the_lineage(module):
    data = module(sources=[SourceSpec(source=Talks(n)) for n in (4, 6)], val_sources=[SourceSpec(source=Talks(5))])
    with pytest.raises(ConfigError, match=r"data.sources.name: two sources are called alike: \['Talks', 'Talks'\]"):
        data.follow_shares(ShareSchedule([SharePoint(0, {"Talks": 1})]))
    assert {name: row["samples"] for name, row in data.manifest().items()} == {"Talks": 4, "Talks#2": 6, "Talks#3": 5}
