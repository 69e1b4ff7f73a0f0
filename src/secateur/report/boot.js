"use strict";
// Runs first: counts what goes wrong, so that a reader (or a test) can see it on the root element.
(function () {
  const root = document.documentElement;
  root.dataset.errors = "0";
  function count(text) {
    root.dataset.errors = String(Number(root.dataset.errors) + 1);
    root.dataset.lastError = String(text).slice(0, 300);
  }
  window.addEventListener("error", (event) => count(event.message));
  window.addEventListener("unhandledrejection", (event) => count(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => count(event.violatedDirective + " " + event.blockedURI));
  const print = console.error.bind(console);
  console.error = function (...words) {
    count(words.join(" "));
    print(...words);
  };
})();
