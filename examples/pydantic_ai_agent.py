"""A pydantic-ai agent that recalls wake.

In this directory: pgrecall worker --agent pydantic_ai_agent:agent
"""

import os

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from pgrecall.adapters.pydantic_ai import PydanticAIAgent

# MODEL=anthropic:claude-opus-5-5 for example, with that provider's key; without it a model that needs no network.
model = os.environ.get("MODEL") or TestModel(custom_output_text="The fern was dry; I have watered it.")
gardener = Agent(model, instructions="You look after the plants. Answer [SILENT] if there is nothing to say.")


@gardener.tool_plain
def soil(plant: str) -> str:
    """How wet a plant's soil is."""
    return f"The soil of {plant} is dry."


agent = PydanticAIAgent(gardener)
