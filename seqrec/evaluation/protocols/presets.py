"""Protocols of well-known code by name.

The settings come from the code itself; each entry lists the remaining differences. All of these codes leave the order
of tied scores to a sort or top-k, which is no rule; here it is the mean over their orders. All use the newest event of
each user as the target.

- `sasrec-100`: Kang & McAuley 2018 (SASRec), `util.py` of kang205/SASRec: 100 items drawn uniformly with replacement
  from all ids, outside the user's training items. Their code may draw the target itself and, in test, the validation
  item; this one draws neither. Their code evaluates at most 10,000 users.
- `gsasrec`: Petrov & Macdonald 2023 (gSASRec), `eval_utils.py` and `config.py` of asash/gSASRec-pytorch: the whole
  catalogue without the history (`filter_rated=True`).
- `recbole`: Zhao et al. 2021 (RecBole), sequential models with `mode: full`: `FullSortEvalDataLoader` passes no
  history for them, so seen items stay candidates. RecBole needs `split: {LS: valid_and_test}` and `order: TO` for
  this, as in its sequential benchmarks; a random split is its general default.
- `rectools`: RecTools' `cross_validate` with `LastNSplitter(1)` and `filter_viewed=True`: the items of the
  training part without the viewed ones, and an NDCG that divides by the ideal gain of k relevant items. Its
  splitter leaves out test events with a cold or viewed item (`filter_cold_items`, `filter_already_seen`); here they
  count. Its tutorials hold out a validation event as here, and do not train on it.
- `hstu`: Zhai et al. 2024 (HSTU), `data/eval.py` of facebookresearch/generative-recommenders: the whole catalogue
  without the events in the model's window (`filter_invalid_ids=True`); here without the whole history. In their code,
  items of MovieLens without an event are candidates too, and an unstable sort orders events of equal time. It trains on
  all events but the newest and judges that one after each epoch, so nothing but the test chooses the epoch: train with
  `LeaveOneOut(train_on_validation=True)` and a number of epochs that is fixed beforehand. Its model reads the time of
  the target: `model.time.request`.
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
    "rectools": {"candidates": WholeCatalogue(trained_only=True), "normaliser": "cutoff", "split": LeaveOneOut()},
    "hstu": {"candidates": WholeCatalogue(), "split": LeaveOneOut(train_on_validation=True)},
}
