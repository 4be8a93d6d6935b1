"""The model checker: a plain model of onefold, and a machine that compares the service with it after every step."""

import pytest

# So that a disagreement shows both sides.
pytest.register_assert_rewrite("model.calls", "model.machine", "model.reads")
