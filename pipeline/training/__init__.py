"""Training parts of all stages: base classes, DataLoader, run folder, callbacks, processes."""

from pipeline import lazy_names

__all__ = [
    "Compile",
    "EpochDecay",
    "Muon",
    "Schedule",
    "Stage",
    "StageData",
    "StepDecay",
    "WarmupCosine",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Compile": "callbacks",
        "EpochDecay": "schedules",
        "Muon": "muon",
        "Schedule": "schedules",
        "Stage": "stage",
        "StageData": "stage",
        "StepDecay": "schedules",
        "WarmupCosine": "schedules",
    },
)
