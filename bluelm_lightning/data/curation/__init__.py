"""Curation: from raw records to training shards, in steps that stream, run side by side and go on after a kill.

A step is one class; YAML names it by ``class_path`` (see docs/DATA.md), Python puts it in a `Pipeline`.
"""

from bluelm_lightning.data.curation.build import BuildShards
from bluelm_lightning.data.curation.classify import Classify
from bluelm_lightning.data.curation.collect import CollectDataset, CollectJson, CollectShards, CollectText
from bluelm_lightning.data.curation.decontaminate import Decontaminate
from bluelm_lightning.data.curation.duplicates import ExactDuplicates
from bluelm_lightning.data.curation.engine import LocalEngine, RayEngine
from bluelm_lightning.data.curation.filters import LengthFilter, RepetitionFilter
from bluelm_lightning.data.curation.language import LanguageFilter
from bluelm_lightning.data.curation.near import NearDuplicates
from bluelm_lightning.data.curation.pictures import PictureFilter
from bluelm_lightning.data.curation.pipeline import Pipeline
from bluelm_lightning.data.curation.record import Record
from bluelm_lightning.data.curation.select import Mix, Select
from bluelm_lightning.data.curation.step import Build, Collect, Decision, Dropped, Filter, Global, Step

__all__ = [
    "Build",
    "BuildShards",
    "Classify",
    "Collect",
    "CollectDataset",
    "CollectJson",
    "CollectShards",
    "CollectText",
    "Decision",
    "Decontaminate",
    "Dropped",
    "ExactDuplicates",
    "Filter",
    "Global",
    "LanguageFilter",
    "LengthFilter",
    "LocalEngine",
    "Mix",
    "NearDuplicates",
    "PictureFilter",
    "Pipeline",
    "RayEngine",
    "Record",
    "RepetitionFilter",
    "Select",
    "Step",
]
