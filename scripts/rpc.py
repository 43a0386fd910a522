#!/usr/bin/env python3
"""Calls methods of a running sluice-vhost over its JSON-RPC socket.

usage: rpc.py [-s SOCKET] [-t SECONDS] METHOD [ARGUMENTS]

The daemon itself tells which methods it has and what they take:
  rpc.py --help                    all methods, when a daemon answers
  rpc.py METHOD --help             a method's parameters

Arguments are given by name or by position, the required ones first; or all of them as one JSON object:
  rpc.py bdev_malloc_create --block-size 512 --num-blocks 131072 --name Malloc0
  rpc.py bdev_aio_create /srv/vm0.img vm0
  rpc.py bdev_get_bdevs '{"name": "vm0"}'
  rpc.py vhost_create_blk_controller vm0 vm0 --readonly

Besides the daemon's methods:
  save_config [FILE]               writes the configuration, to standard output without FILE
  load_config [FILE]               makes its calls again, from standard input without FILE
  markdown                         writes the reference of all methods (docs/rpc.md)

options:
  -s, --socket SOCKET              default: $SLUICE_RPC_SOCKET, or /var/tmp/sluice.sock
  -t, --timeout SECONDS            how long to wait for an answer (default: 60)
  -h, --help                       this text

exit code: 0 done, 1 the daemon refused, 2 wrong usage, 3 no connection to a daemon
"""
import errno
import json
import os
import socket
import sys

DEFAULT_SOCKET = "/var/tmp/sluice.sock"


class Failure(Exception):
    """Ends the program with a message and an exit code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def refused(message):
    return Failure(1, message)


def usage(message):
    return Failure(2, message)


class Client:
    """One connection to a daemon."""

    def __init__(self, path, timeout):
        self._path = path
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._last_id = 0
        try:
            self._socket.connect(path)
        except OSError as error:
            raise Failure(3, f"cannot connect to {path}: {error.strerror or error}\n{self._hint(error)}") from None

    @staticmethod
    def _hint(error):
        if error.errno == errno.ENOENT:
            return "Is sluice-vhost running? Its option -r says where its socket is; tell it to rpc.py with -s."
        if error.errno == errno.ECONNREFUSED:
            return "Nobody listens there any more: the daemon has ended. Start it again."
        if error.errno in (errno.EACCES, errno.EPERM):
            return "The socket belongs to another user: run this as that user, or start the daemon with --rpc-socket-mode."
        return "Is this the socket that sluice-vhost was started with (option -r)?"

    def call(self, method, params=None):
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method}
        if params:
            request["params"] = params
        try:
            self._socket.sendall(json.dumps(request).encode())
            reply = self._receive()
        except TimeoutError:
            raise refused(f"{method}: no answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Failure(3, f"{method}: the connection to {self._path} broke: {error.strerror or error}") from None
        if "error" in reply:
            raise refused(f"{reply['error']['message']} ({reply['error']['code']})")
        return reply["result"]

    def _receive(self):
        # A reply is one line.
        data = bytearray()
        while not data.endswith(b"\n"):
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise Failure(3, f"the daemon on {self._path} closed the connection; its log says why")
            data += chunk
        return json.loads(data)


# What becomes of what a method has changed, when the daemon is started again.
KEPT = {"state": "With `--state-dir`, what it changes survives a restart.",
        "store": "What it changes is kept by the store on its disk.",
        "no": "What it changes does not survive a restart."}


class Method:
    """A method as rpc_discover describes it, and the command line made from that."""

    def __init__(self, description):
        self.name = description["name"]
        self.summary = description["summary"]
        self.result = description["result"]
        self.aliases = description.get("x-aliases", [])
        self.params = description["params"]
        self.kept = KEPT.get(description.get("x-kept"), "")

    @staticmethod
    def type_of(param):
        return " | ".join(param["schema"]["enum"]) if param["x-type"] == "enum" else param["x-type"]

    def synopsis(self):
        words = [self.name]
        for param in self.params:
            words.append(param["name"].upper() if param["required"] else f"[--{option_name(param)}]")
        return " ".join(words)

    def help(self):
        lines = [f"usage: rpc.py {self.synopsis()}", "", self.summary, ""]
        for param in self.params:
            notes = "required" if param["required"] else default_note(param)
            lines.append(f"  --{option_name(param):<26} {self.type_of(param)}{notes and ', ' + notes}")
            lines.append(f"  {'':28} {param['description']}")
        if self.params:
            lines.append("")
        lines.append(f"returns {self.result['schema']['type']}: {self.result['description']}")
        if self.kept:
            lines += ["", self.kept]
        return "\n".join(lines)

    def parse(self, arguments):
        """The parameters as an object for JSON."""
        if len(arguments) == 1 and arguments[0].lstrip().startswith("{"):
            try:
                return json.loads(arguments[0])
            except ValueError as error:
                raise usage(f"{self.name}: the argument is not JSON: {error}") from None
        values = {}
        positional = []
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            if argument == "--":
                positional += rest
                break
            if argument.startswith("-") and not argument.lstrip("-").isdigit():
                self._parse_option(argument, rest, values)
            else:
                positional.append(argument)
        self._place(positional, values)
        for param in self.params:
            if param["required"] and param["name"] not in values:
                raise usage(f"{self.name}: {param['name']} ({param['description']}) is missing\n"
                            f"usage: rpc.py {self.synopsis()}")
        return values

    def _parse_option(self, argument, rest, values):
        name, equals, text = argument.lstrip("-").partition("=")
        param = self._find(name) if argument.startswith("--") else None
        if param is None and argument.startswith("--no-") and not equals:
            param, equals, text = self._find(name[3:]), "=", "false"
            param = param if param and param["x-type"] == "bool" else None
        if param is None:
            options = ", ".join(f"--{option_name(param)}" for param in self.params)
            raise usage(f"{self.name}: there is no option {argument.partition('=')[0]}; "
                        + (f"it takes {options}" if options else "it takes none"))
        if not equals:
            if param["x-type"] == "bool":
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise usage(f"{self.name}: {argument} needs a value: {self.type_of(param)}")
        self._set(param, text, values)

    def _find(self, name):
        name = name.replace("-", "_")
        for param in self.params:
            if name in (param["name"], param.get("x-alias")):
                return param
        return None

    def _place(self, positional, values):
        """Gives what has no name to the required parameters in order, then to the optional ones."""
        free = [param for required in (True, False) for param in self.params
                if param["required"] == required and param["name"] not in values]
        if len(positional) > len(free):
            raise usage(f"{self.name}: too many arguments\nusage: rpc.py {self.synopsis()}")
        for param, text in zip(free, positional):
            self._set(param, text, values)

    def _set(self, param, text, values):
        name, kind = param["name"], param["x-type"]
        try:
            if kind in ("i32", "u32", "u64"):
                value = int(text, 0)
            elif kind == "bool":
                value = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}[text.lower()]
            elif kind == "enum":
                value = text
                if text not in param["schema"]["enum"]:
                    raise ValueError
            elif kind == "array of strings":
                value = values.get(name, []) + text.split(",")
            elif kind == "array of u32":
                value = values.get(name, []) + [int(part, 0) for part in text.split(",") if part]
            else:
                value = text
        except (ValueError, KeyError):
            raise usage(f"{self.name}: {name} must be {self.type_of(param)}, not '{text}'") from None
        values[name] = value


def option_name(param):
    return param["name"].replace("_", "-")


def default_note(param):
    schema = param["schema"]
    return f"default {json.dumps(schema['default'])}" if schema.get("default") not in (None, "") else ""


def discover(client):
    return [Method(description) for description in client.call("rpc_discover")["methods"]]


def save_config(client, arguments):
    if len(arguments) > 1:
        raise usage("usage: rpc.py save_config [FILE]")
    subsystems = [{"subsystem": entry["subsystem"],
                   "config": client.call("framework_get_config", {"name": entry["subsystem"]})}
                  for entry in client.call("framework_get_subsystems")]
    text = json.dumps({"subsystems": subsystems}, indent=2) + "\n"
    if not arguments:
        sys.stdout.write(text)
        return
    # Whole or not at all: a configuration that was cut short would lose disks at the next start.
    temporary = f"{arguments[0]}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, arguments[0])


def load_config(client, arguments):
    if len(arguments) > 1:
        raise usage("usage: rpc.py load_config [FILE]")
    name = arguments[0] if arguments else "standard input"
    try:
        if arguments:
            with open(arguments[0], encoding="utf-8") as file:
                config = json.load(file)
        else:
            config = json.load(sys.stdin)
        calls = [(f"subsystem '{subsystem['subsystem']}', entry {index}", entry["method"], entry.get("params"))
                 for subsystem in config["subsystems"] for index, entry in enumerate(subsystem.get("config") or [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise usage(f"{name}: not a configuration: {error!r}") from None
    for place, method, params in calls:
        try:
            client.call(method, params)
        except Failure as failure:
            raise Failure(failure.code, f"{name}: {place}: {failure}") from None


def markdown(client, arguments):
    if arguments:
        raise usage("usage: rpc.py markdown")
    methods = discover(client)
    print("# JSON-RPC methods\n")
    print("Made by `scripts/rpc.py markdown` from what the daemon says about itself (`rpc_discover`): do not edit.\n")
    print("`*` marks a required parameter. Errors: -32700 parse error, -32600 invalid request, -32601 unknown method,")
    print("-32602 wrong parameters, -32603 internal; every other code is a negated errno, and the message ends with its text.")
    for method in methods:
        print(f"\n## {method.name}\n\n{method.summary}")
        if method.aliases:
            print(f"\nAlso called {', '.join(f'`{alias}`' for alias in method.aliases)}.")
        if method.params:
            print("\n| parameter | type | default | |\n| --- | --- | --- | --- |")
        for param in method.params:
            default = default_note(param).removeprefix("default ")
            alias = f" (older name: `{param['x-alias']}`)" if "x-alias" in param else ""
            kind = Method.type_of(param).replace("|", "\\|")
            print(f"| `{param['name']}`{'*' if param['required'] else ''} | {kind} | {default} | {param['description']}{alias} |")
        print(f"\nReturns {method.result['schema']['type']}: {method.result['description']}.")
        if method.kept:
            print(f"\n{method.kept}")


COMPOSITES = {"save_config": save_config, "load_config": load_config, "markdown": markdown}


def print_result(result):
    print(result if isinstance(result, str) else json.dumps(result, indent=2))


def run_method(client, name, arguments):
    raw = len(arguments) == 1 and arguments[0].lstrip().startswith("{")
    known = {alias: method for method in discover(client) for alias in [method.name, *method.aliases]}
    method = known.get(name)
    if method is None:
        near = [other for other in known if name in other]
        raise usage(f"there is no method {name}" + (f"; did you mean {', '.join(near)}?" if near else
                                                    "; rpc.py rpc_get_methods lists what there is"))
    if not raw and any(argument in ("-h", "--help") for argument in arguments):
        print(method.help())
        return
    print_result(client.call(name, method.parse(arguments)))


def print_help(path, timeout):
    print(__doc__.strip())
    try:
        methods = discover(Client(path, timeout))
    except Failure as failure:
        print(f"\nThe methods are listed here when a daemon answers: {failure}")
        return
    print("\nmethods:")
    for method in methods:
        print(f"  {method.name:<32} {method.summary}")


def take_value(option, rest):
    if not rest:
        raise usage(f"{option} needs a value")
    return rest.pop(0)


def run(arguments):
    path = os.environ.get("SLUICE_RPC_SOCKET") or DEFAULT_SOCKET
    timeout = 60.0
    help_wanted = False
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            help_wanted = True
        elif option in ("-s", "--socket"):
            path = value if equals else take_value(option, rest)
        elif option in ("-t", "--timeout"):
            value = value if equals else take_value(option, rest)
            try:
                timeout = float(value)
            except ValueError:
                raise usage(f"{option} must be a number of seconds, not '{value}'") from None
            if not 0 < timeout < 1e9:
                raise usage(f"{option} must be a positive number of seconds, not '{value}'")
        else:
            raise usage(f"there is no option {option}; see rpc.py --help")
    if help_wanted:
        print_help(path, timeout)
        return
    if not rest:
        raise usage("no method given; see rpc.py --help")
    name, arguments = rest[0], rest[1:]
    if name in COMPOSITES and any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__.strip())
        return
    client = Client(path, timeout)
    if name in COMPOSITES:
        COMPOSITES[name](client, arguments)
    else:
        run_method(client, name, arguments)


def main():
    try:
        run(sys.argv[1:])
    except Failure as failure:
        print(f"rpc.py: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"rpc.py: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
