# The one place for the pinned llama.cpp; pyproject.toml repeats the version as a dependency, which a test compares.
set(HALFV_PIN_VERSION 0.3.36)
set(HALFV_PIN_SHA256 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)
set(HALFV_PIN_COMMIT 0c1e57098)
