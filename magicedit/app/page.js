// Keys and files of the whole page. Runs once, in the gr.HTML of its header.

const COMMIT = 400; // ms after the last arrow key

const typing = ({ target }) => target.closest('textarea, input:not([type=range]):not([type=checkbox]):not([type=radio])');
const hold = held => document.querySelector('.me-stage').classList.toggle('me-original', held);
document.addEventListener('pointerdown', event => event.target.closest('#original') && hold(true));
document.addEventListener('keydown', event => {
    if (event.target.closest('#original') && [' ', 'Enter'].includes(event.key)) hold(true);
});
for (const name of ['pointerup', 'pointercancel', 'keyup', 'blur']) window.addEventListener(name, () => hold(false));

document.addEventListener('keydown', event => {
    if (typing(event) || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    const button = { z: event.shiftKey ? '#redo' : '#undo', y: '#redo' }[key];
    if (!button) return;
    event.preventDefault();
    document.querySelector(button).click();
});

// Gradio lets go of a slider only with the pointer; keys let go of it after a pause
let commit = null;
document.addEventListener('keyup', event => {
    if (!event.target.matches('#controls input[type=range]') || !/^(Arrow|Page|Home|End)/.test(event.key)) return;
    clearTimeout(commit);
    commit = setTimeout(() => event.target.dispatchEvent(new Event('pointerup', { bubbles: true })), COMMIT);
});

// A photograph that is pasted, or dropped on the picture, is uploaded like one dropped on the field, which
// refuses other files with a message
function upload(files) {
    const field = document.querySelector('#upload input[type=file]');
    const [file] = files; // its type may be empty, as of HEIC
    if (!field || !file) return false;
    const transfer = new DataTransfer();
    transfer.items.add(file);
    field.files = transfer.files;
    field.dispatchEvent(new Event('change', { bubbles: true }));
    return true;
}
document.addEventListener('paste', event => {
    if (!typing(event) && upload(event.clipboardData.files)) event.preventDefault();
});
// A browser would leave the page for a file that is dropped beside a field
for (const name of ['dragover', 'drop']) document.addEventListener(name, event => {
    if (event.defaultPrevented || !event.dataTransfer.types.includes('Files')) return;
    event.preventDefault();
    if (name === 'drop' && event.target.closest('#pictures')) upload(event.dataTransfer.files);
});

// A list of tabs is one stop of the tabulator, and arrow keys choose among them
const tabs = () => [...document.querySelectorAll('#controls [role=tablist] [role=tab]')];
const rove = () => tabs().forEach(tab => {
    tab.tabIndex = tab.getAttribute('aria-selected') === 'true' ? 0 : -1;
});
document.addEventListener('keydown', event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const at = tabs().indexOf(event.target);
    if (!by || at < 0) return;
    const next = tabs().at((at + by) % tabs().length);
    next.click();
    next.focus();
});
new MutationObserver(rove).observe(document.body, { subtree: true, childList: true, attributeFilter: ['aria-selected'] });
rove();
