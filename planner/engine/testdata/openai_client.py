"""Asks an embedded engine (base URL as argument) through the openai client, and fails on any surprise."""
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id


def check(ok, what):
    if not ok:
        sys.exit(f"openai {openai.__version__}: {what}")


one = client.completions.create(model=model, prompt=[20, 21, 22], max_tokens=5, extra_body={"return_token_ids": True})
check(one.usage.completion_tokens == 5 and one.usage.prompt_tokens == 3, f"usage {one.usage}")
check(one.choices[0].finish_reason == "length" and len(one.choices[0].token_ids) == 5, f"choice {one.choices[0]}")

text, usage = "", None
for event in client.completions.create(model=model, prompt=[20, 21, 22], max_tokens=5, stream=True,
                                       stream_options={"include_usage": True}):
    text += event.choices[0].text if event.choices else ""
    usage = event.usage or usage
check(text == one.choices[0].text, f"streamed {text!r}, in one piece {one.choices[0].text!r}")
check(usage.completion_tokens == 5, f"streamed usage {usage}")

messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what is a KV cache?"}]
answer = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=6)
check(answer.choices[0].message.role == "assistant" and answer.choices[0].message.content, f"chat {answer}")
check(answer.usage.completion_tokens == 6, f"chat usage {answer.usage}")
text = "".join(event.choices[0].delta.content or "" for event in
               client.chat.completions.create(model=model, messages=messages, max_completion_tokens=6, stream=True))
check(text == answer.choices[0].message.content, f"chat streamed {text!r}, in one piece {answer.choices[0].message.content!r}")

for wrong, error, word in [
    (dict(prompt=[20] * 5000), openai.BadRequestError, "maximum context length is 4096 tokens"),
    (dict(prompt=[20], n=2), openai.BadRequestError, "n must be 1"),
    (dict(prompt=[20], model="nope"), openai.NotFoundError, "does not exist"),
]:
    try:
        client.completions.create(**{"model": model, **wrong})
        check(False, f"{str(wrong)[:60]} was accepted")
    except error as e:
        check(word in str(e), f"{str(wrong)[:60]}: {e}")
