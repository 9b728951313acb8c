"""`/v1/templates`: the people who can speak."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from lawdnet.serving.problems import Problem
from pipelines.serve.files import file_response
from pipelines.serve.schemas import UPLOAD_PROBLEMS, Template, file_form, media, problems
from pipelines.serve.state import State, check_key
from pipelines.serve.upload import received

router = APIRouter(prefix="/v1/templates", tags=["templates"], dependencies=[Depends(check_key)])

FORM = file_form(
    {"@video": "A video of one person.", "name": "Its name: letters, digits, dots, dashes, underscores."},
    {
        "@landmarks": "An OpenFace CSV of the video; without it, faces are found here.",
        "face": "Which of several faces: largest, or a number from 0.",
        "model": "Name of the checkpoint that it is prepared for first; the server's first if it is missing.",
    },
)


@router.get("", response_model=list[Template], responses=problems())
def list_templates(state: State) -> list[Template]:
    """All templates, by name."""
    return [Template.of(status) for status in state.service.templates()]


@router.post(
    "", status_code=202, response_model=Template, openapi_extra=FORM, responses=UPLOAD_PROBLEMS | problems(409)
)
async def create_template(request: Request, state: State) -> JSONResponse:
    """Add a template; it is prepared once, and `GET` says when it is ready."""
    service = state.service
    files = {"video": "video", "landmarks": "video.csv"}
    texts = frozenset({"name", "face", "model"})
    async with received(request, state, files=files, texts=texts, max_bytes=service.limits.video_bytes) as (
        job_id,
        folder,
        form,
    ):
        for field in ("video", "name"):
            if field not in form.names and not form.fields.get(field):
                raise Problem(422, f"no_{field}_field", f"{field}: this field is missing")
        name = form.fields["name"]
        face, model = form.fields.get("face") or "largest", form.fields.get("model", "")
        await run_in_threadpool(service.submit_template, job_id, folder / "video", name=name, face=face, model=model)
    template = Template.of(await run_in_threadpool(service.template, name))
    return JSONResponse(template.model_dump(mode="json"), 202, headers={"location": template.urls["self"]})


@router.get("/{name}", response_model=Template, responses=problems(404, 422))
def read_template(name: str, state: State) -> Template:
    """One template: whether it is ready, or why not."""
    return Template.of(state.service.template(name))


@router.head("/{name}/content", include_in_schema=False)
@router.get(
    "/{name}/content",
    response_class=Response,
    responses=media("video/mp4", parts=True) | problems(404, 416, 422),
)
def fetch_template(name: str, request: Request, state: State) -> Response:
    """The template's own video, as it was sent."""
    row = state.service.template(name).row
    return file_response(request, state.service.files.video(row.content), name=f"{name}.mp4")


@router.delete("/{name}", status_code=204, responses=problems(404, 409, 422))
def delete_template(name: str, state: State) -> Response:
    """Remove a template that a client has added."""
    state.service.delete_template(name)
    return Response(status_code=204)
