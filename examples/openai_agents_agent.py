"""An agent of the OpenAI Agents SDK that recalls wake.

In this directory: pgrecall worker --agent openai_agents_agent:agent
"""

import os

from agents import Agent, function_tool
from agents.testing import ScriptedModel, assistant_message

from pgrecall.adapters.openai_agents import OpenAIAgentsAgent

# MODEL=gpt-5.2 for example, with OPENAI_API_KEY; without it a model that needs no network and knows 1000 answers.
answers = [[assistant_message("I have watered the fern.", item_id=f"msg_{n}")] for n in range(1000)]
model = os.environ.get("MODEL") or ScriptedModel(answers)


@function_tool
def soil(plant: str) -> str:
    """How wet a plant's soil is."""
    return f"The soil of {plant} is dry."


instructions = "You look after the plants. Answer [SILENT] if there is nothing to say."
agent = OpenAIAgentsAgent(Agent(name="Gardener", instructions=instructions, model=model, tools=[soil]))
