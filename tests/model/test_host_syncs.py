"""How often a training step waits for the device, counted on the CPU."""

import pytest
import torch
from tiny import people, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model import rois_querypose


WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.repeat_interleave"}


class HostSyncs(TorchDispatchMode):
    """Counts operations whose result or shape the host has to know, and tensors that are read on the host."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = []
        for name in ("cpu", "tolist", "numpy"):
            self._count_calls(monkeypatch, name)

    def _count_calls(self, monkeypatch, name):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, **kwargs):
            # a tensor that was moved to the host already is read for nothing
            if name != "numpy" or not self.found or self.found[-1] != "cpu":
                self.found.append(name)
            return method(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rsplit(".", 1)[0]
        masks = name == "aten.index" and any(
            index is not None and index.dtype == torch.bool for index in (args[1] if len(args) > 1 else ())
        )
        if name in WAITING or masks:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pose_query_interaction": "none"}, 2),
        ({"query_feedback": "never"}, 2),
        ({"query_feedback": "always"}, 2),
        ({"query_feedback": "training"}, 1 + 3),
        ({"query_feedback": "selected"}, 1 + 3 + 2),
    ],
)
def test_host_syncs_of_a_training_step(fields, expected, monkeypatch):
    """One for the labels' values, and one to match all stages, or one for each stage whose matches must be known.

    With `"selected"` each stage but the last also asks how many queries the rule selects.
    """
    # as on an accelerator: a CPU looks up the RoIs of a level, which costs it nothing
    monkeypatch.setattr(rois_querypose, "reads_rows", lambda device: False)
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(decoder_layers=3, **fields)).train()
    pixel_values = torch.randn(2, 3, 64, 64)
    # as the collator makes them
    labels = [{**people(count), "exhaustive": torch.tensor(True)} for count in (3, 2)]
    model(pixel_values, labels=labels).loss.backward()  # what is computed once is computed here
    model.zero_grad()
    with HostSyncs(monkeypatch) as syncs:
        model(pixel_values, labels=labels).loss.backward()
    assert len(syncs.found) == expected, syncs.found
