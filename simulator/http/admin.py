"""Routes that only the simulator has: faults, scripted answers, and counters for tests."""

from __future__ import annotations

from aiohttp import web

from simulator.answers.scripted import Script, parse_script
from simulator.errors import SimulatorError, bad_request
from simulator.faults import parse_faults
from simulator.http.routes import json_response, read_body
from simulator.http.service import Service


class AdminRoutes:
    """Handlers of the admin routes.

    GET, PUT and DELETE /simulator/faults; PUT and DELETE /simulator/answers; GET /simulator/state.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[web.RouteDef]:
        """List all admin routes."""
        return [
            web.get("/simulator/faults", self._list_faults),
            web.put("/simulator/faults", self._replace_faults),
            web.delete("/simulator/faults", self._clear_faults),
            web.put("/simulator/answers", self._replace_answers),
            web.delete("/simulator/answers", self._clear_answers),
            web.get("/simulator/state", self._get_state),
        ]

    async def _list_faults(self, _: web.Request) -> web.Response:
        return json_response({"faults": [fault.as_json() for fault in self._service.faults.faults]})

    async def _replace_faults(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        try:
            self._service.faults.replace(parse_faults(body))
        except SimulatorError as problem:
            raise bad_request(str(problem)) from problem
        return await self._list_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._service.faults.replace(())
        return await self._list_faults(request)

    async def _replace_answers(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        try:
            self._service.script = parse_script(body)
        except SimulatorError as problem:
            raise bad_request(str(problem)) from problem
        return json_response({"answers": len(self._service.script)})

    async def _clear_answers(self, _: web.Request) -> web.Response:
        self._service.script = Script()
        return json_response({"answers": 0})

    async def _get_state(self, _: web.Request) -> web.Response:
        return json_response(self._service.state())
