"""The live page: a small FastAPI app that only reads, server-sent events, and a page of plain HTML, CSS and JavaScript.

Why our own page and no Plotly: its bundle is 4.5 MB, which a phone in a hospital's network waits for, and it writes
inline styles, which our content security policy forbids. What is drawn here are lines, bars and cells: some hundred
lines of SVG that no build step makes and everybody can read. FastAPI, starlette and uvicorn come with Flower anyway.
"""
