"""Routes that no model server has: faults while it runs, and counts for tests."""

from __future__ import annotations

from aiohttp import web

from simulator.errors import SimulatorError, bad_request
from simulator.faults import faults_from_json
from simulator.routes import json_response, read_body
from simulator.script import Script, script_from_json
from simulator.service import Service


class AdminRoutes:
    """GET, PUT and DELETE /simulator/faults; PUT and DELETE /simulator/answers; GET /simulator/state."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/simulator/faults", self._show),
            web.put("/simulator/faults", self._replace),
            web.delete("/simulator/faults", self._clear),
            web.put("/simulator/answers", self._teach),
            web.delete("/simulator/answers", self._forget),
            web.get("/simulator/state", self._state),
        ]

    async def _show(self, _: web.Request) -> web.Response:
        return json_response({"faults": [fault.as_json() for fault in self._service.faults.faults]})

    async def _replace(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        try:
            self._service.faults.replace(faults_from_json(body))
        except SimulatorError as problem:
            raise bad_request(str(problem)) from problem
        return await self._show(request)

    async def _clear(self, request: web.Request) -> web.Response:
        self._service.faults.replace(())
        return await self._show(request)

    async def _teach(self, request: web.Request) -> web.Response:
        body = await read_body(request)
        try:
            self._service.script = script_from_json(body)
        except SimulatorError as problem:
            raise bad_request(str(problem)) from problem
        return json_response({"answers": len(self._service.script)})

    async def _forget(self, _: web.Request) -> web.Response:
        self._service.script = Script()
        return json_response({"answers": 0})

    async def _state(self, _: web.Request) -> web.Response:
        return json_response(self._service.state())
