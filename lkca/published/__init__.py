"""What the package reads that is no measurement of ours: the paper's tables and claims, as transcribed, and counts.

- ``table1.csv`` to ``table7.csv``: the numbers that the paper prints, by row.
- ``claims.csv``: what the paper says, sentence by sentence, with the basis and the evidence of each verdict.
- ``related.csv``: what others report of models of this size.
- ``complexity.csv``: parameters and MACs of the comparators, made by `lkca.models.complexity`.
- ``segmenters.csv``: the same of the rows of Tables 6 and 7, made by `lkca.models.segmenters`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
