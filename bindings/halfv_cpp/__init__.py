"""ctypes bindings of halfv.h, in header order."""
