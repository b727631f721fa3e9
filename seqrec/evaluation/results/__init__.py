"""Per-user results of tests: written during a test, sliced, and compared with intervals."""

from seqrec.aliases import old_names
from seqrec.evaluation.results.comparison import Comparison, Difference, Estimate, compare, comparison_text
from seqrec.evaluation.results.file import Header, Results, Slice, read_results, slices_of
from seqrec.evaluation.results.intervals import bootstrap_means, percentile_intervals, sign_flip_p_values
from seqrec.evaluation.results.writer import ResultsWriter

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "Header",
    "Results",
    "ResultsWriter",
    "Slice",
    "bootstrap_means",
    "compare",
    "comparison_text",
    "percentile_intervals",
    "read_results",
    "sign_flip_p_values",
    "slices_of",
]

__getattr__ = old_names(__name__)
