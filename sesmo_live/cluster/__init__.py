"""Archives on a cluster: many computers read, crop and score, one keeps the ledger."""

from sesmo_live.cluster.scoring import score_on_cluster

__all__ = ["score_on_cluster"]
