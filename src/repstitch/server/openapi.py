"""stub"""

from repstitch.server.replies import json_reply


async def show_openapi(request):
    return json_reply({})


async def show_docs(request):
    return json_reply({})
