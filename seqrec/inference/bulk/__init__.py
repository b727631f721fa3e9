"""Recommendations for all users of a log, as Parquet, in a job that can be stopped and resumed."""

from seqrec.inference.bulk.job import BulkJob, describe, recommend_in_bulk
from seqrec.inference.bulk.output import BulkOutput
from seqrec.inference.bulk.users import BulkUsers

__all__ = ["BulkJob", "BulkOutput", "BulkUsers", "describe", "recommend_in_bulk"]
