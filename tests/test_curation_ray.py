"""The same steps on Ray Data: the same bytes as processes of this machine leave."""

import pytest
from curation_data import encoded, image, text, vqa, write_jsonl
from test_curation import digests

from bluelm_lightning.cli.data_run import build_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_ray_leaves_the_same_bytes(tmp_path):
    rows = [{"id": f"t{n}", "text": text(n % 90)} for n in range(100)]
    for n in range(20):
        (tmp_path / f"{n}.img").write_bytes(encoded(image(n % 15), "PNG" if n < 15 else "JPEG"))
        rows.append(vqa(f"What is number {n % 15} of the pictures?", "red", f"{n}.img", id=f"p{n}"))
    evaluation = write_jsonl(tmp_path / "test.jsonl", [{"text": text(3)}])
    steps = [
        {
            "class_path": "CollectJson",
            "init_args": {"paths": write_jsonl(tmp_path / "in.jsonl", rows), "part_bytes": 8000},
        },
        {"class_path": "LengthFilter"},
        {"class_path": "PictureFilter"},
        {"class_path": "ExactDuplicates"},
        {"class_path": "NearDuplicates"},
        {"class_path": "Decontaminate", "init_args": {"sets": [evaluation]}},
        {"class_path": "BuildShards", "init_args": {"samples_per_shard": 30}},
    ]
    once = build_pipeline({"output": str(tmp_path / "local"), "processes": 1, "steps": steps}, show=False).run()
    settings = {"output": str(tmp_path / "ray"), "engine": "ray", "processes": 2, "steps": steps}
    assert build_pipeline(settings, show=False).run() == once
    assert [sum(step["dropped"].values()) for step in once["steps"]] == [0, 0, 0, 10, 5, 1, 0]
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
