"""Makes `fabricate` and `malformed` importable for the tests beside them, and finds shared data."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data and goldens; without it the test is skipped, visibly."""
    beside = Path(__file__).parents[2].parent / "shared"
    folder = Path(os.environ.get("HEATLIFT_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
