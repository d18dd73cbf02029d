"""The engine: a model, its chats, their answers."""
