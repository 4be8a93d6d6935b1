"""The sharpest races, pinned: each in the order that matters, and each once more with what guards it switched off."""

import pytest

# So that a wrong outcome shows both sides.
pytest.register_assert_rewrite("races.schedule")
