"""The endpoint as the official client of OpenAI's API sees it."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import jsonschema
import openai
import pytest

HI: Any = [{"role": "user", "content": "Say hello."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "home": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 12},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "minimum": 0, "maximum": 99},
                    "y": {"type": "integer", "minimum": 0, "maximum": 99},
                },
                "required": ["x", "y"],
                "additionalProperties": False,
            },
        },
    },
]


@pytest.fixture(params=["toy", "smol"])
def served(request: pytest.FixtureRequest) -> tuple[openai.OpenAI, str]:
    """Each cluster with the name of its model."""
    return request.getfixturevalue(request.param), request.param


def check_call(call: Any) -> None:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    assert call.type == "function" and call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


def test_models(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    assert [card.id for card in client.models.list()] == [model]
    assert client.models.retrieve(model).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


def test_chat(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    answer = client.chat.completions.create(
        model=model, messages=HI, max_completion_tokens=12, temperature=0, user="u", metadata={"a": "b"}, store=False
    )
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_a_whole_answer_does(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    fields: Any = {"model": model, "messages": HI, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content


def test_completions(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    answer = client.completions.create(model=model, prompt="One, two,", max_tokens=5, temperature=0, echo=True)
    assert answer.choices[0].text.startswith("One, two,") and len(answer.choices[0].text) > 9
    chunks = client.completions.create(model=model, prompt="One, two,", max_tokens=5, temperature=0, stream=True)
    assert "One, two," + "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_logprobs(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    answer = client.chat.completions.create(
        model=model, messages=HI, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    logs = answer.choices[0].logprobs
    assert logs is not None and logs.content is not None
    assert 1 <= len(logs.content) <= 3
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in logs.content)


def test_several_choices(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    fields: Any = {"model": model, "messages": HI, "max_tokens": 16, "n": 3, "seed": 5, "temperature": 1.5}
    answer = client.chat.completions.create(**fields)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1, "seeds differ"
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_schema_holds(served: tuple[openai.OpenAI, str], temperature: int) -> None:
    client, model = served
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        max_tokens=300,
        temperature=temperature,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_a_json_object(smol: openai.OpenAI) -> None:
    answer = smol.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": 'Answer with JSON like {"greeting": "hello"}.'}],
        max_tokens=120,
        temperature=0,
        response_format={"type": "json_object"},
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_has_to_be(served: tuple[openai.OpenAI, str], choice: Any) -> None:
    client, model = served
    fields: Any = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Paris, in celsius?"}],
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 120,
    }
    answer = client.chat.completions.create(**fields).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert answer.message.tool_calls is not None and len(answer.message.tool_calls) == 1
    check_call(answer.message.tool_calls[0])
    if choice != "required":
        assert answer.message.tool_calls[0].function.name == "add"
    name, arguments, ids, pieces = "", "", set(), 0
    for chunk in client.chat.completions.create(**fields, stream=True):
        delta = chunk.choices[0].delta
        assert not delta.content
        for call in delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
            ids |= {call.id} if call.id else set()
            pieces += 1
    whole = answer.message.tool_calls[0].function
    assert (name, arguments, len(ids)) == (whole.name, whole.arguments, 1)
    # The toy is so fast that a message has many tokens.
    assert pieces > 2 or model == "toy", "arguments come in pieces"


def test_parallel_calls(toy: openai.OpenAI) -> None:
    # Greedy text of the toy never ends by itself: only the most calls there may be end it.
    answer = toy.chat.completions.create(
        model="toy", messages=HI, tools=TOOLS, tool_choice="required", temperature=0, max_tokens=2000
    ).choices[0]
    calls = answer.message.tool_calls or []
    assert answer.finish_reason == "tool_calls" and 1 <= len(calls) <= 16
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        check_call(call)


def test_auto_lets_the_model_speak_and_tools_answer(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "What is the weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny, 21 degrees"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=24, temperature=0)
    message = answer.choices[0].message
    assert message.content or message.tool_calls


def test_auto_with_a_schema_is_a_call_or_the_schema(served: tuple[openai.OpenAI, str]) -> None:
    client, model = served
    for seed in range(3):
        answer = client.chat.completions.create(
            model=model,
            messages=HI,
            tools=TOOLS,
            max_tokens=300,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        ).choices[0]
        for call in answer.message.tool_calls or []:
            check_call(call)
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.message.content or ""), PERSON)


def test_hints(toy: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 100}]

    def cached(**hints: Any) -> int:
        answer = toy.chat.completions.create(model="toy", messages=long, max_tokens=20, temperature=0, extra_body=hints)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached(cache_salt="a", ttl_s=60, priority=1, session_id="s") == 0
    assert cached(cache_salt="a", prefetch_next_turn=True) > 400
    assert cached(cache_salt="b") == 0, "salts share nothing"
    assert cached() == 0, "nor with those that have none"
    assert cached(session_end=True) > 400


def test_errors_have_the_clients_types(toy: openai.OpenAI) -> None:
    def refused(param: str | None, error: type[openai.APIStatusError] = openai.BadRequestError, **fields: Any) -> str:
        with pytest.raises(error) as raised:
            toy.chat.completions.create(**{"model": "toy", "messages": HI, "max_tokens": 4} | fields)
        assert raised.value.param == param
        return str(raised.value)

    assert "does not exist" in refused("model", openai.NotFoundError, model="none")
    refused("temperature", temperature=3)
    refused("n", n=99)
    refused("messages[0].role", messages=[{"role": "king", "content": "x"}])
    refused("messages", messages=[{"role": "user", "content": "x" * 100_000}])
    refused("user", user=7)
    refused("tools[0].type", tools=[{"type": "web_search"}])
    refused("tool_choice", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "none"}})
    schema = {"type": "string", "contains": 3}
    named = {"name": "n", "schema": schema, "strict": True}
    assert "contains" in refused("response_format", response_format={"type": "json_schema", "json_schema": named})
    named["schema"] = {"$ref": "#/$defs/none"}
    refused("response_format", response_format={"type": "json_schema", "json_schema": named})
    assert toy.chat.completions.create(model="toy", messages=HI, max_tokens=4).choices, "the workers live on"


def test_a_stream_that_is_closed_ends_the_work(smol: openai.OpenAI) -> None:
    stream = smol.chat.completions.create(
        model="smol", messages=HI, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    health = str(smol.base_url).removesuffix("v1/") + "health"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(health) as answer:
            if json.load(answer)["requests_in_flight"] == 0:
                return
        time.sleep(0.05)
    pytest.fail("the request goes on without its client")
