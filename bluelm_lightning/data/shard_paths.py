"""Which tars a path means, and what the manifest of their folder says."""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path
from typing import Any

from bluelm_lightning.data.records import load_json
from bluelm_lightning.data.shard_index import index_path
from bluelm_lightning.errors import ConfigError, DataError

MANIFEST = "manifest.json"


def find_shards(path: str | Path | list[str] | list[Path]) -> list[Path]:
    """A folder, a tar, a glob, a brace list, or a list of these -> absolute paths, in order.

    Raises:
        ConfigError: nothing there, no shards in it, a URL, a compressed tar, an open brace, or one shard
            twice.
        DataError: a folder whose writing was not finished, or that lacks shards of its manifest.
    """
    given = path if isinstance(path, list | tuple) else [path]
    found = [Path(os.path.abspath(tar)) for one in given for tar in _expand(os.path.expanduser(one))]
    twice = sorted({str(tar) for tar in found if found.count(tar) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; name it once and raise its weight")
    for tar in found:
        if tar.suffix != ".tar":
            raise ConfigError(f"{tar} is no .tar; random access needs plain tars, so gunzip a .tar.gz")
    if not found:
        raise ConfigError(f"no shards in {path!r}; give a folder, a .tar or a glob")
    return found


def _expand(path: str) -> list[str]:
    if "://" in path or path.startswith("pipe:"):
        raise ConfigError(f"{path} is a URL; download the shards, only local files are read")
    if os.path.isdir(path):
        return _in_folder(Path(path))
    if os.path.exists(path):
        return [path]
    if "{" in path:
        from braceexpand import braceexpand  # comes with webdataset

        try:
            found = list(braceexpand(path))
        except ValueError:  # its UnbalancedBracesError
            raise ConfigError(f"{path} does not close a brace; write it as shard-{{000..009}}.tar") from None
        return [tar for one in found for tar in _expand(one)]
    if any(sign in path for sign in "*?["):
        return sorted(glob(path))
    raise ConfigError(f"{path} does not exist")


def _in_folder(folder: Path) -> list[str]:
    tars = sorted(str(tar) for tar in folder.glob("*.tar"))
    manifest = read_manifest(folder)
    if manifest and not manifest["complete"]:
        raise DataError("its writing was cut off; write it again, or name its .tar files to use these", str(folder))
    missing = sorted({shard["file"] for shard in manifest.get("shards", ())} - {os.path.basename(tar) for tar in tars})
    if missing:
        raise DataError(f"lacks {missing} of its {MANIFEST}; copy the folder again, or delete {MANIFEST}", str(folder))
    if not tars:
        raise ConfigError(f"{folder} holds no .tar; write some with bluelm-data convert")
    return tars


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest that a ShardWriter left in a folder; empty where there is none, or one of another program.

    Raises:
        DataError: a manifest that does not parse, or whose shards lack a field.
    """
    path = folder / MANIFEST
    held = load_json(path.read_bytes(), str(path)) if path.is_file() else None
    if not isinstance(held, dict) or "complete" not in held or not isinstance(held.get("shards"), list):
        return {}
    if not all(isinstance(shard, dict) and shard.keys() >= {"file", "bytes", "sha256"} for shard in held["shards"]):
        raise DataError("a shard in it lacks file, bytes or sha256; delete it, shards are read without it", str(path))
    return held


def claim_folder(folder: Path, prefix: str, overwrite: bool) -> None:
    """Makes a folder ready for a new set of shards, removing only what a ShardWriter left there, and only if told so.

    Raises:
        ConfigError: it holds shards and `overwrite` is off; or it holds shards or a manifest of others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tars, manifest = sorted(folder.glob("*.tar")), folder / MANIFEST
    if not overwrite and (tars or manifest.exists()):
        raise ConfigError(f"{folder} already holds {len(tars)} shards; choose another folder, or set overwrite")
    for path in written_by_us(folder, prefix):
        path.unlink(missing_ok=True)


def written_by_us(folder: Path, prefix: str) -> list[Path]:
    """What a ShardWriter left in a folder: shards, indices, its manifest, files that it did not finish.

    Raises:
        ConfigError: it holds shards or a manifest of others.
    """
    tars, manifest, held = sorted(folder.glob("*.tar")), folder / MANIFEST, read_manifest(folder)
    own = {shard["file"] for shard in held.get("shards", ())}
    own |= {tar.name for tar in tars if re.fullmatch(rf"{prefix}-\d{{6}}\.tar", tar.name)}
    foreign = [tar.name for tar in tars if tar.name not in own] + [MANIFEST] * (manifest.exists() and not held)
    if foreign:
        raise ConfigError(f"{folder} holds {foreign[0]}, written by others; choose another folder")
    return [*tars, *map(index_path, tars), *folder.glob(f"{prefix}-*.idx.json"), *folder.glob(".*.tar.*.tmp"), manifest]
