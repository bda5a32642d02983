"""Where tests find the project's own files, and data that is not the project's to publish."""

import os
from pathlib import Path


PROJECT = Path(__file__).resolve().parents[1]
#: Reference data beside the project, or where `QUERYPOSE_SHARED` says; tests that read it skip where it is absent.
SHARED = Path(os.environ.get("QUERYPOSE_SHARED") or PROJECT.parent / "shared")
#: Scripts that are no command of `querypose`.
OWN_SCRIPTS = (
    "measure_fine_tuning",
    "pretrain_hrnet_heatmaps",
    "robustness",
    "study",
    "train_with_trainer",
    "write_published_cards",
    "write_readme",
)
