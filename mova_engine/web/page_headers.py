"""The headers that keep other sites away from the engine's pages, and the pages from other sites."""


def page_headers(**more: str) -> dict[str, str]:
    """Headers of a page that loads only what its own server has; more: sources by the CSP's names, `_` for `-`.

    `page_headers(img_src="'self' blob:")` lets it show pictures of its server and of its own making.
    """
    sources = {
        "default_src": "'none'",
        "script_src": "'self'",
        "style_src": "'self'",
        "media_src": "'self'",
        "img_src": "data:",
        "connect_src": "'self'",
        "base_uri": "'none'",
        "form_action": "'none'",
        "frame_ancestors": "'none'",
    }
    policy = "; ".join(f"{name.replace('_', '-')} {allowed}" for name, allowed in {**sources, **more}.items())
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
