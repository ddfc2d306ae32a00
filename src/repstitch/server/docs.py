"""The /docs page: the OpenAPI document as HTML that loads nothing from the network and runs no script."""

from functools import cache
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from repstitch import __version__
from repstitch.server.openapi import ERRORS, document
from repstitch.server.responses import CODES
from repstitch.server.schemas import NULL, schemas
from repstitch.server.settings import Settings


async def show_docs(request: Request) -> Response:
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(page(), headers=headers)


@cache
def page() -> str:
    """Return the page as HTML."""
    openapi = document()
    parts = [
        f"<h1>repstitch <small>{escape(__version__)}</small></h1>",
        f"<p>{escape(openapi['info']['summary'])} This service lists its stitchers at <a href='/v1/stitchers'>"
        "/v1/stitchers</a> and their spaces at <a href='/v1/spaces'>/v1/spaces</a>. A machine-readable version of this "
        "page is at <a href='/openapi.json'>/openapi.json</a>.</p>",
        "<p>If the service requires an API key, send <code>Authorization: Bearer KEY</code>, or the key in "
        "<code>x-api-key</code> or <code>api-key</code>.</p>",
        f"<h2>Examples</h2><pre>{escape(EXAMPLES)}</pre>",
        "<h2>Routes</h2>",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts.append(_section(path, method, operation))
    parts += [
        "<h2>Errors</h2>",
        "<p>The body of every error is <code>",
        escape('{"error": {"code", "message", "param"}}'),
        "</code>: a code, a message of one line, and the parameter, field or header at fault, or null.</p>",
    ]
    parts.append(_table(("status", "code", "meaning"), [(str(c), CODES[c], ERRORS[c]) for c in sorted(ERRORS)]))
    parts += ["<h2>JSON request bodies</h2>"]
    for name in ("Translate", "Embeddings", "Score"):
        schema = openapi["components"]["schemas"][name]
        rows = [(field, "yes" if field in schema["required"] else "", _kind(kind), kind.get("description", ""))
                for field, kind in schema["properties"].items()]  # fmt: skip
        parts += [f"<h3>{name}</h3>", _table(("field", "required", "type", "description"), rows)]
    limits = Settings()
    parts.append(
        f"<p>Default limits: {limits.max_body_bytes:,} bytes per request body ({limits.json_bytes:,} in JSON), "
        f"{limits.max_rows:,} rows per request, {limits.max_concurrency} concurrent requests, and {limits.timeout_s:g} "
        "seconds to receive and answer a request.</p>"
    )
    return PAGE.replace("BODY", "\n".join(parts))


def _section(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3>", f"<p>{escape(operation['summary'])}.</p>"]
    if "description" in operation:
        parts.append(f"<p>{_code(operation['description'])}</p>")
    if operation.get("parameters"):
        rows = [(p["name"], p["in"], _kind(p["schema"]), p.get("description", "")) for p in operation["parameters"]]
        parts.append(_table(("parameter", "in", "type", "description"), rows))
    if "requestBody" in operation:
        kinds = operation["requestBody"]["content"]
        parts.append(f"<p>Request body: {', '.join(f'<code>{escape(kind)}</code>' for kind in kinds)}.</p>")
    success = operation["responses"]["200"]
    parts.append(f"<p>Response: {', '.join(f'<code>{escape(kind)}</code>' for kind in success['content'])}; "
                 f"errors: {', '.join(code for code in operation['responses'] if code != '200')}.</p>")  # fmt: skip
    if "headers" in success:
        parts.append(
            _table(("header", "description"), [(name, h["description"]) for name, h in success["headers"].items()])
        )
    return "\n".join(parts)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_code(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _code(text: str) -> str:
    """Escape text as HTML, and turn text between backticks into code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def _kind(schema: dict[str, Any]) -> str:
    """Name the type of a schema in words. Null is not named, because every optional field may be null."""
    if "$ref" in schema:
        return _kind(schemas()[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return " or ".join(_kind(alternative) for alternative in schema["anyOf"] if alternative != NULL)
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    kind = str(schema["type"])
    return "base64" if "contentEncoding" in schema else "text" if kind == "string" else kind


EXAMPLES = """\
curl -X POST 'http://127.0.0.1:3000/v1/translate?source=OLD&target=NEW' \\
     -H 'Content-Type: application/octet-stream' --data-binary @rows.f32 -o translated.f32

curl -X POST http://127.0.0.1:3000/v1/translate -H 'Content-Type: application/json' \\
     -d '{"source": "OLD", "target": "NEW", "embedding": [0.1, 0.2, ...]}'

from repstitch.client import Client
translated = Client("http://127.0.0.1:3000").translate(rows, "OLD", "NEW")

from openai import OpenAI
openai = OpenAI(base_url="http://127.0.0.1:3000/v1", api_key="KEY")
openai.embeddings.create(model="OLD->NEW", input=[[0.1, 0.2, ...]])"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>repstitch</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 small { font-weight: normal; color: #777; font-size: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { margin-top: 2rem; } h3 b { color: #0a5; font-size: .9rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #f4f4f2; } code { padding: 0 .2em; }
pre { padding: 1rem; overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { text-align: left; vertical-align: top;
padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #e5e5e5; } th { font-weight: 600; color: #777; }
</style></head><body>
BODY
</body></html>"""
