"""Wire formats beside the OpenAI API's chats and completions, over the same core."""

from fastapi import APIRouter

from server.api import token_routes
from server.api.anthropic import routes as anthropic
from server.api.chat.start import ChatParts
from server.api.ollama import routes as ollama
from server.api.openai import embeddings
from server.api.openai_responses import routes as openai_responses


def routers(chats: ChatParts) -> list[APIRouter]:
    """Return the routes of all of them."""
    return [
        embeddings.router(chats.service, chats.prompts),
        openai_responses.router(chats),
        anthropic.router(chats),
        ollama.router(chats),
        ollama.model_router(chats),
        token_routes.router(chats),
        token_routes.info_router(chats),
    ]
