"A Python process that finds this file on its path reaches nothing but its own machine: see conftest.py."
import ipaddress, socket

def _here(host):
    if host in (None, "", "localhost", socket.gethostname()): return True
    try: address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError: return False
    return address.is_loopback or address.is_unspecified

def _check(host):
    if not _here(host): raise OSError(f"tests do not use the network: {host}")

def _guard(name):
    before = getattr(socket.socket, name)
    def guarded(self, *args):
        if isinstance(args[-1], tuple): _check(args[-1][0])
        return before(self, *args)
    setattr(socket.socket, name, guarded)

if not hasattr(socket, "_only_here"):
    socket._only_here = True
    for name in ("connect", "connect_ex", "sendto"): _guard(name)
    def getaddrinfo(host, *args, _before=socket.getaddrinfo, **kw): _check(host); return _before(host, *args, **kw)
    socket.getaddrinfo = getaddrinfo
