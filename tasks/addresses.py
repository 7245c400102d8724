"""Which network addresses a task may connect to on a stranger's behalf."""

from __future__ import annotations

import ipaddress
import socket

# The part of IPv6 given out to the public (IANA, RFC 4291). What lies outside includes addresses
# that carry an IPv4 address in disguise (::ffff:a.b.c.d, NAT64's 64:ff9b::), which are no way round.
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
# 6to4 (RFC 7526 retires it) carries one too, within 2000::/3.
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


class AddressRefusedError(Exception):
    """The host has no address that may be connected to; says which it has and why not."""


def is_public(address: str) -> bool:
    """Tell whether ``address`` is anybody's to reach: not private, loopback, link-local, multicast."""
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or not ip.is_global:
        return False
    return not isinstance(ip, ipaddress.IPv6Address) or (ip in PUBLIC_IPV6 and ip not in SIX_TO_FOUR)


def resolve(host: str, port: int, *, allow_private: bool = False) -> list[str]:
    """Return the addresses of ``host`` that may be connected to, in the resolver's order.

    The caller must connect to one of these and not to the name: a name can mean another address a
    moment later (DNS rebinding).

    Raises ``AddressRefusedError`` when there is none, ``OSError`` when the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label longer than the DNS has
        message = f"{host[:100]}: not a host name: {error}"
        raise OSError(message) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        message = f"{host} is at {', '.join(addresses)}: not a public address (allow_private permits it)"
        raise AddressRefusedError(message)
    return allowed
