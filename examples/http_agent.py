"""An agent behind a URL; any language can do the same.

pip install 'pgrecall[http]' standardwebhooks
export PGRECALL_WEBHOOK_SECRET=$(python -c "from pgrecall.webhooks import new_secret; print(new_secret())")
uvicorn --app-dir examples --port 8600 http_agent:app &
pgrecall worker --agent http://127.0.0.1:8600/
"""

import os

from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

webhook = Webhook(os.environ["PGRECALL_WEBHOOK_SECRET"])
answers: dict[str, str] = {}  # yours: a table, so that it outlives this process


async def agent(request: Request) -> Response:
    """Answers a recall that is due."""
    try:
        due = webhook.verify(await request.body(), dict(request.headers))
    except WebhookVerificationError:
        return PlainTextResponse("wrong signature", 401)
    name = request.headers["webhook-id"]
    if name not in answers:  # a try that we know gets the answer that we know
        answers[name] = f"I have done it: {due['data']['user_message']}"  # yours: give due["data"]["text"] to the model
    return JSONResponse({"reply": answers[name]})


app = Starlette(routes=[Route("/", agent, methods=["POST"])])
