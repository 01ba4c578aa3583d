"""The official OpenAI client against two endpoints: one model on two workers, one on a single worker.

    python test_openai.py URL_TWO_WORKERS URL_ONE_WORKER"""
import json, os, sys
import openai

MODEL = "MiniMax-M1-demo"
GOLDENS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "demo", "goldens.json")
two, one = (openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) for url in sys.argv[1:3])
passed = 0


def check(name, holds):
    global passed
    if not holds:
        sys.exit(f"FAILED: {name}")
    passed += 1
    print("ok", name)


def whole(client, conversation):
    return client.chat.completions.create(model=MODEL, messages=conversation["messages"], temperature=0, max_tokens=200,
                                          tools=conversation.get("tools") or openai.NOT_GIVEN)


def streamed(client, conversation):
    content, reasoning, calls, finish, usage = "", "", {}, None, None
    stream = client.chat.completions.create(model=MODEL, messages=conversation["messages"], temperature=0, max_tokens=200, stream=True,
                                            stream_options={"include_usage": True}, tools=conversation.get("tools") or openai.NOT_GIVEN)
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                entry = calls.setdefault(call.index, ["", ""])
                entry[0] += call.function.name or ""
                entry[1] += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return content, reasoning, [tuple(calls[i]) for i in sorted(calls)], finish, usage


with open(GOLDENS) as file:
    conversations = json.load(file)
check("models", [m.id for m in two.models.list().data] == [MODEL])
for i, conversation in enumerate(conversations):
    answer, single = whole(two, conversation), whole(one, conversation)
    message = answer.choices[0].message
    check(f"conversation {i}: two workers say what one says", message.model_dump(exclude={"tool_calls"}) == single.choices[0].message.model_dump(exclude={"tool_calls"}))
    called = [[(c.function.name, c.function.arguments) for c in m.tool_calls or []] for m in (message, single.choices[0].message)]
    check(f"conversation {i}: two workers call what one calls", called[0] == called[1])
    content, reasoning, calls, finish, usage = streamed(two, conversation)
    check(f"conversation {i}: streamed content", content == (message.content or ""))
    check(f"conversation {i}: streamed reasoning", reasoning == (message.reasoning_content or ""))
    check(f"conversation {i}: streamed calls", calls == [(c.function.name, c.function.arguments) for c in message.tool_calls or []])
    check(f"conversation {i}: finish and usage", (finish, usage.total_tokens) == (answer.choices[0].finish_reason, answer.usage.total_tokens))
sampled = [two.chat.completions.create(model=MODEL, messages=conversations[0]["messages"], temperature=1.0, seed=5, max_tokens=40) for _ in range(2)]
check("the same seed gives the same answer", sampled[0].choices[0].message.content == sampled[1].choices[0].message.content)
text = two.completions.create(model=MODEL, prompt="What is a Pod?", temperature=0, max_tokens=8)
check("completions", text.usage.completion_tokens <= 8 and text.object == "text_completion")
for name, call, status in (
    ("unknown model", lambda: two.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}]), 404),
    ("no messages", lambda: two.chat.completions.create(model=MODEL, messages=[]), 400),
    ("too long", lambda: two.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=10**9), 400),
):
    try:
        call()
        check(name, False)
    except openai.APIStatusError as error:
        check(name, error.status_code == status and "message" in (error.body or {}))
print(f"{passed} passed, 0 failed")
