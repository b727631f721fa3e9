"""Protocols of well-known code by name.

Read in the code itself; each line says what stays different. All of these leave the order of tied scores to a sort or
top-k, which is no rule; here it is the mean over their orders. All judge by the newest event of each user.

- `sasrec-100`: Kang & McAuley 2018 (SASRec), `util.py` of kang205/SASRec: 100 items drawn uniformly with replacement
  from all ids, outside the user's training items. There the target itself and, in test, the validation item may be
  drawn; here neither is. There at most 10,000 users are judged.
- `gsasrec`: Petrov & Macdonald 2023 (gSASRec), `eval_utils.py` and `config.py` of asash/gSASRec-pytorch: the whole
  catalogue without the history (`filter_rated=True`).
- `recbole`: Zhao et al. 2021 (RecBole), sequential models with `mode: full`: `FullSortEvalDataLoader` hands over no
  history for them, so seen items stay candidates. Needs `split: {LS: valid_and_test}` and `order: TO` there, as in its
  sequential benchmarks; a random split is its general default.
- `rectools`: RecTools' `cross_validate` with `LastNSplitter(1)` and `filter_viewed=True`: the items of the
  training part without the viewed ones, and an NDCG that divides by the ideal gain of k relevant items. There its
  splitter leaves out test events with a cold or viewed item (`filter_cold_items`, `filter_already_seen`); here they
  are judged.
- `hstu`: Zhai et al. 2024 (HSTU), `data/eval.py` of facebookresearch/generative-recommenders: the whole catalogue
  without the events in the model's window (`filter_invalid_ids=True`); here without the whole history. There items
  of MovieLens that have no event are candidates too.
"""

from __future__ import annotations

from typing import Any

from seqrec.data.splits import LeaveOneOut
from seqrec.evaluation.protocols.candidates import WholeCatalogue
from seqrec.evaluation.protocols.sampled_candidates import UniformCandidates

# Name -> arguments of `Protocol`.
PRESETS: dict[str, dict[str, Any]] = {
    "sasrec-100": {"candidates": UniformCandidates(100), "split": LeaveOneOut()},
    "gsasrec": {"candidates": WholeCatalogue(), "split": LeaveOneOut()},
    "recbole": {"candidates": WholeCatalogue(), "filter_seen": False, "split": LeaveOneOut()},
    "rectools": {
        "candidates": WholeCatalogue(trained_only=True),
        "normaliser": "cutoff",
        "split": LeaveOneOut(),
    },
    "hstu": {"candidates": WholeCatalogue(), "split": LeaveOneOut()},
}
