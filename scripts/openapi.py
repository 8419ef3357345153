#!/usr/bin/env python3
"""Completes the OpenAPI document of protoc-gen-openapi, which has neither the HTTP statuses and error bodies of this API nor the
limits of ids. Reads the first argument and writes the second one."""

import re
import sys

import yaml

ID = "^[A-Za-z0-9._~:+@-]{1,128}$"
KEY_OR_EMPTY = "^[!-~]{0,128}$"
# Requests: by schema or parameter name, what a field must match. An empty request id is the same as no request id, and an
# empty user id as no user id.
LIMITS = {
    "productId": {"pattern": ID},
    "userId": {"pattern": KEY_OR_EMPTY},
    "requestId": {"pattern": KEY_OR_EMPTY},
    "reservationId": {"format": "uuid"},
    "pageSize": {"minimum": 0},
}
# Responses: the fields that may be absent; every other one is always there.
ABSENT = {"stock", "opensAt", "closesAt", "recordedAt"}
# The statuses of a call that succeeds, where it is not 200 alone.
SUCCESS = {
    "InventoryService_ReserveUnit": {
        "200": "An earlier call of the same request took the unit.",
        "201": "The unit is taken and the order is stored (ack = LEDGER).",
        "202": "The unit is taken; the order is not stored yet.",
    },
    "StorefrontService_PlaceOrder": {"202": "The unit is taken, by this call or an earlier one of the same request."},
}
ERRORS = {
    "post": ["400", "401", "403", "404", "409", "413", "429", "500", "503", "504"],
    "get": ["400", "401", "403", "404", "429", "500", "503", "504"],
}
# Which of them a deployment asks for depends on its settings; with authentication off, none.
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT or an API key."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."},
}

KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The request id, if the body has none.",
    "schema": {"type": "string"},
}
DETAIL = {
    "description": "One detail of an error; its @type determines which fields it has.",
    "type": "object",
    "required": ["@type"],
    "properties": {
        "@type": {
            "type": "string",
            "description": "type.googleapis.com/google.rpc. and ErrorInfo, BadRequest or RetryInfo.",
        },
        "reason": {"type": "string", "description": "ErrorInfo: why the call failed, for programs; see docs/errors.md."},
        "domain": {"type": "string", "description": "ErrorInfo: \"yoink\"."},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "ErrorInfo: the values that the message mentions, and applied.",
        },
        "fieldViolations": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/FieldViolation"},
            "description": "BadRequest: the fields that are wrong.",
        },
        "retryDelay": {"type": "string", "description": "RetryInfo: how long to wait, as in \"1.5s\"."},
    },
}
VIOLATION = {
    "type": "object",
    "required": ["field", "description"],
    "properties": {"field": {"type": "string"}, "description": {"type": "string"}},
    "description": "A field that is wrong.",
}


def reasons():
    """The reasons of docs/errors.md by HTTP status."""
    found = {"413": ["none: the body is larger than 16 KiB"]}
    for line in open("docs/errors.md", encoding="utf-8"):
        if line.startswith("| `"):
            reason, _, status = [cell.strip(" |`") for cell in line.split(" | ")][:3]
            found.setdefault(status, []).append(reason)
    return found


def error_response(status, reasons):
    response = {
        "description": "Reasons: " + ", ".join(reasons) + ".",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}},
    }
    if status in ("429", "503"):
        wait = {"description": "Seconds to wait before the call is repeated, rounded up.", "schema": {"type": "integer"}}
        response["headers"] = {"Retry-After": wait}
    if status == "401":
        response["headers"] = {"WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}}}
    return response


def complete_operation(method, operation):
    for parameter in operation.get("parameters", []):
        parameter["schema"].update(LIMITS.get(parameter["name"], {}))
    responses = operation["responses"]
    content = responses["200"]["content"]
    if operation["operationId"] == "StorefrontService_ListStorefront":
        # A stream, which Envoy makes an array.
        content["application/json"]["schema"] = {"type": "array", "items": content["application/json"]["schema"]}
    success = SUCCESS.get(operation["operationId"], {"200": "OK"})
    operation["responses"] = {status: {"description": text, "content": content} for status, text in success.items()}
    for status in ERRORS[method]:
        operation["responses"][status] = {"$ref": f"#/components/responses/Error{status}"}
    operation["responses"]["default"] = responses["default"]
    if method == "post":
        operation.setdefault("parameters", []).append(KEY_HEADER)


def complete_schema(name, schema):
    properties = schema["properties"]
    if name.endswith("Request"):
        for field, limits in LIMITS.items():
            if field in properties:
                properties[field].update(limits)
    elif name != "Money":
        schema["required"] = [field for field in properties if field not in ABSENT]
    for field in properties.values():
        if field.get("format") == "enum":
            del field["format"]
        # No resource is part of a request, and generators make every readOnly field optional.
        field.pop("readOnly", None)


def with_joined_lines(value):
    """The lines of a comment are one paragraph; an empty line ends it."""
    if isinstance(value, dict):
        return {key: with_joined_lines(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_joined_lines(item) for item in value]
    return re.sub(r"(?<!\n)\n(?!\n)", " ", re.sub(r"\n +", "\n", value)) if isinstance(value, str) else value


class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def main(source, target):
    document = with_joined_lines(yaml.safe_load(open(source, encoding="utf-8")))
    document["info"]["description"] = (
        "Sells a limited number of units to far more buyers than there are units, and never more than there are. "
        "An error is a google.rpc.Status with details."
    )
    for path in document["paths"].values():
        for method, operation in path.items():
            complete_operation(method, operation)
    schemas = document["components"]["schemas"]
    del schemas["GoogleProtobufAny"]
    schemas["Status"]["properties"]["details"]["items"] = {"$ref": "#/components/schemas/ErrorDetail"}
    for name, schema in schemas.items():
        complete_schema(name, schema)
    schemas.update(ErrorDetail=DETAIL, FieldViolation=VIOLATION)
    schemas["Status"]["description"] = "An error; docs/errors.md lists the reasons."
    schemas["Status"]["properties"]["code"]["description"] = "The gRPC status code."
    schemas["Status"]["properties"]["message"]["description"] = "What happened, for people. Programs read the reason in details."
    schemas["Status"]["properties"]["details"]["description"] = "ErrorInfo, and BadRequest or RetryInfo."
    declared = reasons()
    statuses = sorted(set(ERRORS["get"] + ERRORS["post"]))
    document["components"]["responses"] = {f"Error{status}": error_response(status, declared[status]) for status in statuses}
    document["components"]["securitySchemes"] = SECURITY
    document["security"] = [{name: []} for name in SECURITY] + [{}]
    with open(target, "w", encoding="utf-8") as out:
        out.write("# Made by `make openapi` from proto/ and docs/errors.md.\n")
        yaml.dump(document, out, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


main(sys.argv[1], sys.argv[2])
