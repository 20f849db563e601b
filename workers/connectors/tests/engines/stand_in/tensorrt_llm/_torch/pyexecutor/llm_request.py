"""A request."""

from __future__ import annotations


class LlmRequest:
    """One sequence; the native class has many more attributes."""

    def __init__(self, request_id: int, tokens: list[int], **attributes: object) -> None:
        self.request_id = request_id
        self._tokens = list(tokens)
        self.__dict__.update(attributes)

    def get_tokens(self, beam: int) -> list[int]:
        """Prompt and what was sampled."""
        assert beam == 0
        return list(self._tokens)

    def add_new_token(self, token: int, beam: int) -> None:
        assert beam == 0
        self._tokens.append(token)
