"""Requests to a model behind an OpenAI-compatible address come in; replies go out, each kept on the disk as it arrives.

Read `replies` (the file that keeps them), `chat_client` (one request), `questions` (many at once).
"""
