"""lawdnet: lip-sync generators, from raw videos to a rendered mouth.

The library half of the project. It never imports ray: `pipelines/` spreads this code over a cluster.
"""

__version__ = "0.1.0"
