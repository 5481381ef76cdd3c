"""Looking into shards: what samples become, drawn in the terminal and as one HTML page.

    ShardFolder --collect--> Inspection (views of samples, statistics by source, problems) --> terminal.py | page.py

Drawing is written apart from the page of `callbacks.sample_page`: callbacks may import the records alone, so there is
no room in which both could meet; and that page shows what a model wrote, this one what a model is given.
"""

from bluelm_lightning.inspection.collect import Inspection, collect
from bluelm_lightning.inspection.folder import ShardFolder
from bluelm_lightning.inspection.reading import Reading
from bluelm_lightning.inspection.views import SampleView, view_of

__all__ = ["Inspection", "Reading", "SampleView", "ShardFolder", "collect", "view_of"]
