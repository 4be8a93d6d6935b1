"""The long work behind short calls: relocating events, disabling a token everywhere, retention."""
