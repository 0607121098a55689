// Small helpers for the elements of the page.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; texts become text nodes, so nothing of a prompt is ever read as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Write a text only where it differs: screen readers repeat what is written again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell those who do not see the page. */
export function announce(text) {
  write($("said"), text);
}

/** Resolve after so many milliseconds, or at once when the signal is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((go) => {
    const timer = setTimeout(go, milliseconds);
    signal?.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        go();
      },
      { once: true },
    );
  });
}
