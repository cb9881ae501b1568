"""The requests that the console answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from livefactor.errors import (
    FailedPrecondition,
    LivefactorError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from livefactor.models import ModelDescription
from livefactor.wire.ids import ids_of_texts
from livefactor_server.console import forms
from livefactor_server.console.actions import Actions, work_of
from livefactor_server.console.curves import Curves
from livefactor_server.console.sessions import COOKIE, Session, Sessions
from livefactor_server.files.settings import settings

HERE = Path(__file__).parent
BODY_BYTES_MAX = 8192
"""A form holds a token and no more."""

LIST_MAX = 100
SNAPSHOTS_SHOWN = 10
PRODUCERS_SHOWN = 20
QUICK_S = 1.0
"""How long the answer to a form waits for the end of its action, seconds."""

CLOSED = 499
"""Status for the log of a request whose browser has left. Nobody gets it."""

_STATUSES: tuple[tuple[type[LivefactorError], int], ...] = (
    (Unauthenticated, 401),
    (PermissionDenied, 403),
    (NotFound, 404),
    (Unavailable, 503),
)

Handler = Callable[[Request], Awaitable[Response]]


class Pages:
    """The handlers, and what they share."""

    def __init__(self, sessions: Sessions, target: str) -> None:
        self._sessions, self._target = sessions, target
        self._curves = Curves()
        self.actions = Actions()
        self._templates = Jinja2Templates(HERE / "templates")
        self._templates.env.filters |= forms.FILTERS

    def routes(self) -> list[Route | Mount]:
        """The addresses of the console."""
        return [
            Route("/", self._answer(self.models)),
            Route("/models", self._answer(self.model_rows)),
            Route("/models/{name}", self._answer(self.model)),
            Route("/models/{name}/live", self._answer(self.live)),
            Route("/models/{name}/curve", self._answer(self.curve)),
            Route("/models/{name}/list", self._answer(self.user_list)),
            Route("/models/{name}/similar", self._answer(self.similar)),
            Route("/models/{name}/act", self._answer(self.act), methods=["POST"]),
            Route("/login", self._answer(self.login), methods=["GET", "POST"]),
            Route("/logout", self._answer(self.logout), methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    # Pages

    async def models(self, request: Request) -> Response:
        """All models of the server."""
        return self._page(request, "models.html", models=await self._list(request))

    async def model_rows(self, request: Request) -> Response:
        """The rows of the table of models."""
        return self._page(request, "model_rows.html", models=await self._list(request))

    async def model(self, request: Request) -> Response:
        """One model."""
        session, name = self._session(request), request.path_params["name"]
        model = await session.models.describe(name)
        shown = await self._figures(session, model)
        shown |= {"is_admin": await session.is_admin(name), "form_key": session.form_key}
        return self._page(request, "model.html", **shown)

    async def live(self, request: Request) -> Response:
        """The part of a model's page that changes all the time."""
        session, name = self._session(request), request.path_params["name"]
        model = await session.models.describe(name)
        return self._page(request, "live.html", **await self._figures(session, model))

    async def curve(self, request: Request) -> Response:
        """The points of a model's picture, as JSON."""
        model = await self._session(request).models.describe(request.path_params["name"])
        return JSONResponse(self._curve_of(model).columns())

    async def user_list(self, request: Request) -> Response:
        """A user's list, and what it would be after events that are not stored."""
        asked = forms.ListForm.of(request.query_params)
        scorer = self._session(request).scorer(request.path_params["name"])
        users, k = asked.users(), min(asked.k, LIST_MAX)
        calls = [scorer.recommend(users, k, exclude_seen=asked.exclude_seen)]
        if asked.events:
            calls.append(
                scorer.recommend(users, k, exclude_seen=asked.exclude_seen, events=asked.event_ids())
            )
        answers = [answer[0] for answer in await asyncio.gather(*calls)]
        return self._page(request, "list.html", asked=asked, answers=answers, rows=forms.rows(answers))

    async def similar(self, request: Request) -> Response:
        """The items that are most similar to an item."""
        item = request.query_params.get("item", "").strip()
        scorer = self._session(request).scorer(request.path_params["name"])
        texts: Any = [item] if "strings" in request.query_params else ids_of_texts([item])
        answer = (await scorer.similar(texts, 10))[0]
        return self._page(request, "similar.html", item=item, answer=answer, rows=forms.rows([answer]))

    async def act(self, request: Request) -> Response:
        """Starts what an administrator asks for."""
        session, name = self._session(request), request.path_params["name"]
        form = await _form(request)
        if form is None:
            return Response("the form is too large", 413)
        if not secrets.compare_digest(form.get("form_key", "").encode(), session.form_key.encode()):
            return Response("the form is none of this console, or too old: load the page again", 403)
        text, work = work_of(session, name, form)
        lineage = (await session.models.describe(name)).position.lineage.hex()
        action = self.actions.start(lineage, text, work)
        # Most actions end, or are refused, at once.
        await asyncio.wait([action.task] if action.task is not None else [], timeout=QUICK_S)
        if action.failed:
            raise ValueError(action.outcome)
        return self._page(request, "acted.html", action=action)

    async def login(self, request: Request) -> Response:
        """The form that takes a token, and the check of it."""
        if request.method == "GET":
            return self._page(request, "login.html", trouble="")
        form = await _form(request)
        if form is None:
            return Response("the form is too large", 413)
        token = form.get("token", "").strip()
        if not (token.isascii() and token.isprintable()):
            return self._page(
                request, "login.html", status=401, trouble="the token has characters of no token"
            )
        session = self._sessions.make(token)
        try:
            await session.models.list()
        except LivefactorError as error:
            await session.close()
            trouble = "the server does not know this token" if _status(error) == 401 else str(error)
            return self._page(request, "login.html", status=_status(error), trouble=trouble)
        answer = RedirectResponse("/", 303)
        cookie = await self._sessions.keep(session)
        answer.set_cookie(
            COOKIE, cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Ends the session."""
        await self._sessions.end(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    # What they share

    def _session(self, request: Request) -> Session:
        return self._sessions.find(request.cookies.get(COOKIE, ""))

    async def _list(self, request: Request) -> list[dict[str, Any]]:
        models = await self._session(request).models.list()
        return [{"model": model, "state": forms.state(model)} for model in models]

    def _curve_of(self, model: ModelDescription) -> Any:
        curve = self._curves.of(model.position.lineage.hex())
        curve.add(time.time(), model)
        return curve

    async def _figures(self, session: Session, model: ModelDescription) -> dict[str, Any]:
        curve = self._curve_of(model)
        snapshots, contest, producers = await asyncio.gather(
            _unless_refused(session.auditor(model.name).list()),
            _unless_refused(session.models.challengers(model.name)),
            _unless_refused(session.models.producers(model.name, limit=PRODUCERS_SHOWN)),
        )
        return {
            "model": model,
            "state": forms.state(model),
            "events_per_s": curve.events_per_s(),
            "point": curve.points[-1][3],
            "metric": curve.metric,
            "snapshots": list(snapshots or ())[:SNAPSHOTS_SHOWN],
            "contest": contest,
            "producers": producers,
            "action": self.actions.of(model.position.lineage.hex()),
            "groups": forms.groups(model.judgement, curve.metric),
            "settings": settings(model.spec or {}),
            "now": time.time(),
        }

    def _page(self, request: Request, name: str, status: int = 200, **values: Any) -> Response:
        is_person = COOKIE in request.cookies
        values |= {"target": self._target, "is_person": is_person}
        return self._templates.TemplateResponse(request, name, values, status_code=status)

    def _answer(self, handler: Handler) -> Handler:
        """The handler, with errors as pages."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=CLOSED)
            except Unauthenticated:
                # A part of a page cannot show a form of its own.
                if "hx-request" in request.headers:
                    return Response(headers={"HX-Redirect": "/login"})
                return RedirectResponse("/login", 303)
            except (LivefactorError, ValueError) as error:
                if "hx-request" in request.headers:
                    # A browser logs other statuses as errors of the page.
                    return self._page(request, "trouble.html", trouble=str(error))
                return self._page(request, "trouble_page.html", status=_status(error), trouble=str(error))

        return answer


def _status(error: Exception) -> int:
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 400)


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form, or None if it is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            return None
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


async def _unless_refused(call: Awaitable[Any]) -> Any:
    """The result of a call, or None where the person may not make it or the model has no such."""
    try:
        return await call
    except (PermissionDenied, FailedPrecondition, Unimplemented):
        return None
