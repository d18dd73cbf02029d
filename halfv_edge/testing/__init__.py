"""Random models and encoders with the shapes of real ones, and a client that drives llama.cpp without the engine."""
