"""A LangGraph graph that is woken by recalls. One thread per session, in the same database as the recalls.

pip install 'pgrecall[langgraph]'
export PGRECALL_DSN=postgresql://localhost/app
pgrecall migrate
python langgraph_agent.py                       # makes LangGraph's tables, once
pgrecall schedule chat-1 "Water the plants." --in 5s --create-session
pgrecall worker --agent langgraph_agent:agent
"""

import asyncio
import itertools
import os
from contextlib import asynccontextmanager

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, MessagesState, StateGraph

from pgrecall.adapters.langgraph import LangGraphAgent

# Yours, for example init_chat_model("…") of langchain; this one needs no key.
model = GenericFakeChatModel(messages=itertools.cycle([AIMessage("The plants have water.")]))


async def answer(state: MessagesState):
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node(answer)
builder.add_edge(START, "answer")


@asynccontextmanager
async def graph():
    async with AsyncPostgresSaver.from_conn_string(os.environ["PGRECALL_DSN"]) as saver:
        yield builder.compile(checkpointer=saver)


agent = LangGraphAgent(graph)  # opens the graph for each run


async def set_up():
    async with AsyncPostgresSaver.from_conn_string(os.environ["PGRECALL_DSN"]) as saver:
        await saver.setup()


if __name__ == "__main__":
    asyncio.run(set_up())
