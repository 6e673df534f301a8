"""The local page, which `kvswap ui` opens: sessions, guard, what it shows, and how it stays current."""
