"""From `--agent` to the object: what to import, call or run, and what to say if that fails.

Knows no verb, and not what an agent is.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from pgrecall.cli.errors import WrongUsage
from pgrecall.doctor.finding import one_line
from pgrecall.errors import AgentError

#: The ways to name an agent, for help.
AGENT = "MODULE:ATTRIBUTE|URL|exec:COMMAND"

#: Modules that an agent's module imports before the adapter could say what is missing, and the extra that brings them.
_EXTRAS = {
    "agents": "openai-agents",
    "httpx2": "http",
    "langchain_core": "langgraph",
    "langgraph": "langgraph",
    "mcp": "mcp",
    "pydantic_ai": "pydantic-ai",
    "starlette": "http",
}

_WAYS = "Write module:attribute (myapp.agents:agent), a URL (https://…), or exec:command (exec:./agent.sh)."


def load(agent: str) -> Any:
    """The agent: imported (`module:attribute`), behind a URL (`https://…`) or a command (`exec:command …`).

    Modules are looked for in the current directory first.

    Raises:
        WrongUsage: It is none of these, or there is no such thing.
        AgentError: A module cannot be imported, or a command or URL cannot be an agent.
    """
    if re.match(r"https?://", agent):
        from pgrecall.adapters.http import HTTPAgent

        return HTTPAgent(agent)
    if re.match(r"exec(\+text)?:", agent):
        from pgrecall.adapters.subprocess import SubprocessAgent

        try:
            return SubprocessAgent.from_command_line(agent)
        except AgentError as error:
            raise WrongUsage(f"--agent: {error}", hint=error.hint) from error
    return _import(agent)


def _import(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or "/" in path:
        raise WrongUsage(f"--agent is {path!r}", hint=_WAYS)
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise _import_failed(module_name, error) from error
        raise WrongUsage(
            f"--agent: there is no module {error.name!r}", hint=f"Looked in {Path.cwd()} and in Python's own path."
        ) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(module_name, error) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            public = ", ".join(known for known in dir(found) if not known.startswith("_"))
            hint = f"Did you mean {near[0]}?" if near else f"It has {public[:200] or 'nothing public'}."
            raise WrongUsage(f"--agent: {module_name} has no attribute {name!r}", hint=hint)
        found = getattr(found, name)
    return found


def _import_failed(module_name: str, error: BaseException) -> AgentError:
    message = f"--agent: importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
    hint = error.hint if isinstance(error, AgentError) else ""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = _EXTRAS.get(error.name.partition(".")[0])
        hint = f"If it is for an adapter: pip install 'pgrecall[{extra}]'" if extra else ""
    return AgentError(message, hint=hint or "--debug shows the traceback.")
